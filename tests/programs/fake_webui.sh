#!/usr/bin/env bash
# A stand-in for webui.sh (backends.md 3.1): bash stays, Python runs in its foreground, and whatever webui-user.sh beside
# it sets is in force. Root must pass -f first. The loop goes round again while Python leaves tmp/restart behind.
#
# FAKE_PYTHON          the interpreter of the "virtual environment" (python3)
# FAKE_RECORD          file that gets "PID bash ..." lines

here=$(cd -- "$(dirname -- "${BASH_SOURCE[0]}")" > /dev/null && pwd)
note() { [[ -z "${FAKE_RECORD}" ]] || echo "$$ bash $*" >> "${FAKE_RECORD}"; }

if [[ -f "${here}/webui-user.sh" ]]; then
    # shellcheck source=/dev/null
    source "${here}/webui-user.sh"
fi
: "${LAUNCH_SCRIPT:=launch.py}"

as_root=0
while getopts "f" option > /dev/null 2>&1; do
    [[ "${option}" == "f" ]] && as_root=1 || break
done
echo "Install script for a pretended web UI"
if [[ $(id -u) -eq 0 && ${as_root} -eq 0 ]]; then
    printf '\e[1m\e[31mERROR: This script must not be launched as root, aborting...\e[0m\n'
    exit 1
fi

cd "${here}" || exit 1
[[ -z "${VIRTUAL_ENV}" ]] && note "activates its own environment" || note "stays in ${VIRTUAL_ENV}"
again=1
while [[ ${again} -eq 1 ]]; do
    again=0
    note "runs ${LAUNCH_SCRIPT##*/}"
    "${FAKE_PYTHON:-python3}" -u "${LAUNCH_SCRIPT}" "$@"
    status=$?
    [[ -f tmp/restart ]] && again=1
done
exit ${status}
