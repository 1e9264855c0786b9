"""Which memory each model gets."""

from hypothesis import given
from hypothesis import strategies as st

from juggler.setup.estimate import footprint_bytes
from juggler.setup.place import Budget, Placed, place
from juggler.survey.gpu import Gpu
from juggler.units import GIB, MIB
from tests.unit.setup.make import card, facts, model


def placed(one: object, *gpus: Gpu, on_gpu: bool = True) -> Placed | None:
    return place(one, Budget(facts(gpus=gpus)), on_gpu=on_gpu)  # type: ignore[arg-type]


def test_pools() -> None:
    """Each GPU with a little left to others; main memory beside them, not without them."""
    budget = Budget(facts(gpus=(card(0, 24), card(1, 8))))
    sizes = {name: round(size / GIB, 1) for name, (size, _) in budget.pools.items()}
    assert sizes == {"gpu0": 23.2, "gpu1": 7.5, "ram": 57.6}
    assert "24.0 GiB" in budget.pools["gpu0"][1]
    assert Budget(facts()).pools == {}


def test_the_largest_context_that_fits() -> None:
    """Less for larger models; never more than the model was made for."""
    for size, context in ((8, 32768), (19, 16384), (21, 8192), (21.8, 4096)):
        one = placed(model("m", size), card())
        assert one is not None
        assert (one.context, one.layers, list(one.memory)) == (context, None, ["gpu0"])
        assert 0 <= one.memory["gpu0"] - footprint_bytes(one.model, context) < GIB // 10
    short = placed(model("m", 8, context_length=2048), card())
    assert short is not None
    assert short.context == 2048


def test_models_that_do_not_fit_on_the_gpu() -> None:
    """Some layers there, the rest in main memory; too much for both: not at all."""
    one = placed(model("m", 40), card())
    assert one is not None
    assert not one.fast
    assert one.layers is not None
    assert 0 < one.layers < 33
    assert one.memory["gpu0"] <= 24 * GIB
    assert 40 * GIB < sum(one.memory.values()) < 44 * GIB
    assert placed(model("m", 90), card()) is None


def test_two_gpus() -> None:
    """Models are dealt out; each sees its own GPU; what fits on neither is spread by their sizes."""
    budget = Budget(facts(gpus=(card(0, 24), card(1, 12))))
    first, second, third = (place(model(name, 8), budget, on_gpu=True) for name in "abc")
    assert first is not None
    assert second is not None
    assert third is not None
    assert [list(one.memory) for one in (first, second)] == [["gpu0"], ["gpu0"]]  # 12.7 GiB do not fit on 11.5
    small = place(model("s", 4), budget, on_gpu=True)
    assert small is not None
    assert list(small.memory) == ["gpu1"]
    assert small.env == {"CUDA_DEVICE_ORDER": "PCI_BUS_ID", "CUDA_VISIBLE_DEVICES": "1"}
    both = place(model("b", 26), budget, on_gpu=True)
    assert both is not None
    assert both.fast
    assert both.env == {}
    assert list(both.memory) == ["gpu0", "gpu1"]
    assert 1.9 < both.memory["gpu0"] / both.memory["gpu1"] < 2.1


def test_other_vendors() -> None:
    """AMD has a variable of its own; one GPU needs none."""
    two = placed(model("m", 4), card(0, 16, "AMD"), card(1, 16, "AMD"))
    assert two is not None
    assert two.env == {"HIP_VISIBLE_DEVICES": "0"}
    one = placed(model("m", 4), card(0, 16, "AMD"))
    assert one is not None
    assert one.env == {}


def test_without_a_gpu() -> None:
    """Main memory, a modest context, nothing declared; beside a GPU that the program cannot use it is declared."""
    plain = placed(model("m", 8))
    assert plain is not None
    assert (plain.context, plain.memory, plain.fast) == (8192, {}, True)
    unused = placed(model("m", 8), card(), on_gpu=False)
    assert unused is not None
    assert list(unused.memory) == ["ram"]
    assert placed(model("m", 60)) is None


def test_embeddings() -> None:
    """They take what they were made for, and no more."""
    one = placed(model("m", 0.3, architecture="bert", context_length=512), card())
    assert one is not None
    assert one.context == 512


@given(
    st.lists(st.floats(0.01, 200), min_size=1, max_size=8),
    st.lists(st.integers(3, 96), max_size=4),
    st.booleans(),
    st.integers(0, 64),
)
def test_no_footprint_is_larger_than_its_pool(sizes: list[float], gpus: list[int], on_gpu: bool, layers: int) -> None:
    """Whatever the machine and the models: ``check`` would call it an error."""
    budget = Budget(facts(gpus=tuple(card(number, gib) for number, gib in enumerate(gpus))))
    for size in sizes:
        one = place(model("m", size, block_count=layers), budget, on_gpu=on_gpu)
        if one is not None:
            assert all(0 < wanted <= budget.pools[name][0] for name, wanted in one.memory.items())
            assert all(wanted >= 100 * MIB // 2 for wanted in one.memory.values())
