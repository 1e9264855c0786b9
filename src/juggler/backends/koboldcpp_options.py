"""koboldcpp's command line, cut into options with their values and positional words. Pure.

Positional words are the model and the port, so it must be known of each option how many words follow it. The table
holds every option of the 310 versions of koboldcpp.py from 2023-06 to 1.116.1 (2026-06), each with the most words that
any version gave it. The parser is Python's ``argparse``: ``--port N``, ``--port=N``, unambiguous beginnings, and for
one-letter options the value in the same word (``-mF``).

An option that is not in the table may take values or not. All words up to the next option are then left with it: what
is not understood is never taken apart. If one of them was a positional model after all, a port behind it stays too,
and the program says that it has two; writing options it does not know last, or ``--model``, avoids that.
"""

from collections.abc import Iterable, Sequence
from dataclasses import dataclass
from typing import Literal

Values = int | Literal["optional", "many"]

_TABLE: tuple[tuple[Values, str], ...] = (
    (
        0,
        """--admin --allow-config-onready --autofit --autoswapmode --cli --contextshift --embeddingsgpu --enableguidance
        --failsafe --fit --flash-attn --flashattention --foreground --gendefaultsoverwrite --help --highpriority
        --ignoremissing --jinja --jinja-tools --jinja_tools --jinjatools --launch --lowvram --mlock --mmprojcpu
        --multiplayer --musiclowvram --no-context-shift --no-flash-attn --no-kv-offload --no-mmap --no-mmproj-offload
        --noavx2 --noblas --nobostoken --nocertify --nofastforward --noflashattention --nommap --nommq --nomodel
        --nopipelineparallel --noshift --noswa --pipelineparallel --psutil_set_threads --quiet --remotetunnel
        --routermode --sdclipgpu --sdflashattention --sdnotile --sdoffloadcpu --sdvaeauto --sdvaecpu --showgui
        --singleinstance --skiplauncher --smartcontext --stream --swa-full --testmemory --ttsgpu --unbantokens --usecpu
        --usemlock --usemmap --usemtp --useswa --version --websearch -fa -fit -h -nkvo -nofa""",
    ),
    (
        1,
        """--admindir --adminpassword --adminunloadtimeout --analyze --autofitpadding --baseconfig --batch-size
        --batchsize --batchthreads --blasbatchsize --blasthreads --chat-template-file --chat-template-kwargs
        --chatcompletionsadapter --config --contbatch --contextsize --continuous-batching --ctx-size --defaultgenamt
        --device --downloaddir --draft-max --draft-n --draftamount --draftgpulayers --draftmodel --embeddingsmaxctx
        --embeddingsmodel --exportconfig --exporttemplate --gendefaults --genlimit --gpu-layers-draft --hordegenlen
        --hordekey --hordemaxctx --hordemodelname --hordeworkername --host --image-max-tokens --image-min-tokens
        --jinja-kwargs --jinja_kwargs --jinjakwargs --jinjatemplate --jinjathink --loramult --main-gpu --maingpu
        --maxrequestsize --mcpfile --mmproj --model-draft --moeexperts --musicdiffusion --musicembeddings --musicllm
        --musicvae --n-gpu-layers-draft --onready --override-kv --override-tensor --overridekv --overridenativecontext
        --overridetensors --parallelrequests --password --port --preloadstory --prompt --promptlimit --quantkv
        --ratelimit --reasoningeffort --reqtimeout --rpcdevice --rpchost --rpcmode --rpcport --rpctargets
        --savedatafile --sdaudiovae --sdclampedsoft --sdclip1 --sdclip2 --sdclipdevice --sdclipg --sdclipl
        --sdconvdirect --sdmaingpu --sdmodel --sdphotomaker --sdrestrictsquare --sdt5xxl --sdthreads --sdtiledvae
        --sdupscaler --sdvae --sdvaedevice --sdvramlimit --spec-draft-n-max --split-mode --splitmode --swapadding
        --threads --threads-batch --threadsbatch --ttsdir --ttsmaxlen --ttsmodel --ttsthreads --ttswavtokenizer
        --unpack --visionmaxres --visionmaxtokens --visionmintokens --whispermodel -b -c -dev -md -mg -ngld -ot -p -sm
        -t""",
    ),
    (2, "--useclblast"),
    (3, "--usemirostat"),
    (
        "optional",
        """--benchmark --debugmode --forceversion --gpu-layers --gpulayers --moecpu --multiuser --n-cpu-moe
        --n-gpu-layers --sdclamped --sdgendefaults --sdquant --smartcache -ncmoe -ngl""",
    ),
    (
        "many",
        """--bantokens --draftgpusplit --hordeconfig --lora --model --ropeconfig --sdconfig --sdlora --sdloramult --ssl
        --tensor-split --tensor_split --tensorsplit --usecublas --usecuda --usehipblas --usevulkan -m -ts""",
    ),
)
_VALUES: dict[str, Values] = {name: values for values, names in _TABLE for name in names.split()}
_SHORT_FORMS = {"-m": "--model", "-p": "--prompt", "-h": "--help"}
"""Of the options that matter here; other short forms stand under their own names."""

END_OF_OPTIONS = "--"
POSITIONAL = ""


@dataclass(frozen=True, slots=True)
class Group:
    """Words of a command line that belong together: an option and its values, or one positional word."""

    words: tuple[str, ...]
    """As they stand there."""
    option: str
    """The option's full name; ``POSITIONAL``; ``END_OF_OPTIONS``; or an unknown option as it stands there."""
    values: tuple[str, ...] = ()

    @property
    def value(self) -> str:
        """The first value; empty where there is none."""
        return self.values[0] if self.values else ""


def split(arguments: Sequence[str]) -> list[Group]:
    """The groups of a command line, in order; their words together are the command line."""
    groups: list[Group] = []
    position = 0
    while position < len(arguments):
        word = arguments[position]
        if word == END_OF_OPTIONS:
            groups.append(Group((word,), END_OF_OPTIONS))
            groups += [Group((rest,), POSITIONAL, (rest,)) for rest in arguments[position + 1 :]]
            break
        if not _looks_like_option(word):
            groups.append(Group((word,), POSITIONAL, (word,)))
            position += 1
            continue
        option, attached = _resolve(word)
        following = _values_at(arguments, position + 1, _VALUES.get(option, "many")) if attached is None else ()
        values = following if attached is None else (attached,)
        groups.append(Group((word, *following), option, values))
        position += 1 + len(following)
    return groups


def joined(groups: Iterable[Group]) -> list[str]:
    """The command line of these groups."""
    return [word for group in groups for word in group.words]


def last_value(groups: Iterable[Group], option: str) -> str | None:
    """The first value of the last such option, which is the one that counts; empty for a flag, None if absent."""
    value = None
    for group in groups:
        if group.option == option:
            value = group.value
    return value


def _resolve(word: str) -> tuple[str, str | None]:
    """The full name of the option in a word, and the value if it stands in the same word."""
    name, equals, after = word.partition("=")
    attached = after if equals else None
    if name not in _VALUES:
        if name.startswith("--"):
            full = [one for one in _VALUES if one.startswith(name)]
            name = full[0] if len(full) == 1 else name
        elif word[:2] in _VALUES:
            name, attached = word[:2], word[2:]
    return _SHORT_FORMS.get(name, name), attached


def _values_at(arguments: Sequence[str], start: int, values: Values) -> tuple[str, ...]:
    limit = values if isinstance(values, int) else 1 if values == "optional" else len(arguments)
    taken: list[str] = []
    for word in arguments[start:]:
        if len(taken) == limit or word == END_OF_OPTIONS or _looks_like_option(word):
            break
        taken.append(word)
    return tuple(taken)


def _looks_like_option(word: str) -> bool:
    """As ``argparse`` tells them: negative numbers and words with spaces are values, unless they name an option."""
    if len(word) < 2 or not word.startswith("-"):
        return False
    if word.partition("=")[0] in _VALUES:
        return True
    try:
        float(word)
    except ValueError:
        return " " not in word or _resolve(word)[0] in _VALUES
    return False
