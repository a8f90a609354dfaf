"""Keys of patterns that select by the query: what they make, what is refused, and what enters ids."""

import pytest

from ratplus import Pattern, PatternMap
from ratplus.config.cell import Config
from ratplus.config.eval import ClozeSection, EvalSection
from ratplus.config.model import ModelSection
from ratplus.config.pattern import PatternSection
from ratplus.config.train import RecipeSection, SftSection, TrainSection
from ratplus.stages.stage_ids import plan


def config(pattern: PatternSection, **sections) -> Config:
    model = sections.pop("model", ModelSection(layers=2, d_model=64, d_head=16))
    return Config(model=model, pattern=pattern, train=sections.pop("train", TrainSection(context=128)), **sections)


def ids(cell: Config) -> dict[str, str]:
    return {stage.name: stage.id for stage in plan(cell, {"text": "x"}, 257)}


NO_LOSS = EvalSection(text_rows=0, recall_rows=0, cloze=ClozeSection(items=0))
UNTRAINED = TrainSection(context=128, adapt=RecipeSection(steps=0))


def test_values_make_a_map():
    made = config(PatternSection(dilation=None, top=8, block=16, score="bounds", phase="both")).patterns
    assert made == PatternMap.uniform(Pattern(top=8, block=16, score="bounds"), 2, 4)
    made = config(PatternSection(dilation=[None, 1], top=[8, None], block=16)).patterns
    assert made == PatternMap.per_layer([Pattern(top=8, block=16), Pattern()], 4)
    made = config(
        PatternSection(dilation=None, top=[2, 4, 8, None], window=[0, 0, 0, 9], block=16, over="heads")
    ).patterns
    tops = [Pattern(top=k, block=16) for k in (2, 4, 8)]
    assert made == PatternMap.per_head([*tops, Pattern(None, 9)], 2)
    made = config(PatternSection(dilation=None, snap=32, observe=8), eval=NO_LOSS, train=UNTRAINED).patterns
    assert made[0][0] == Pattern(snap=32, observe=8)


@pytest.mark.parametrize(
    ("make", "message"),
    [
        (lambda: PatternSection(dilation=None, top=0), r"pattern.top: got 0; it must be ≥ 2"),
        (lambda: PatternSection(dilation=None, top=1), r"pattern.top: got 1; it must be ≥ 2"),
        (lambda: PatternSection(dilation=None, top=8, block=0), r"pattern.block: got 0; it must be ≥ 1"),
        (lambda: PatternSection(dilation=None, top=8, score="quest"), r"pattern.score: got 'quest'; allowed: mean"),
        (lambda: PatternSection(top=8), r"pattern.top: got 8; with pattern.dilation=1 every key is visible anyway"),
        (lambda: PatternSection(block=32), r"pattern.block: got 32; it means nothing with pattern.top=null"),
        (lambda: PatternSection(phase="decode"), r"pattern.phase: got 'decode'; it means nothing with pattern.top"),
        (lambda: PatternSection(observe=8), r"pattern.observe: got 8; it means nothing with pattern.snap=null"),
        (lambda: PatternSection(blocks_of="kept"), r"pattern.blocks_of: got 'kept'; it means nothing"),
        (lambda: PatternSection(dilation=None, top=8, blocks_of="kept"), r"pattern.blocks_of: got 'kept' with"),
        (lambda: PatternSection(dilation=None, snap=100, kernel=4), r"pattern.kernel: got 4; it must be odd"),
        (lambda: PatternSection(dilation=None, snap=10), r"pattern.snap: got 10; it must be ≥ 64"),
        (lambda: config(PatternSection(dilation=None, top=2, block=129)),
         r"pattern.block: got 129; it must be ≤ train.context=128"),
        (lambda: config(PatternSection(dilation=None, snap=200, observe=129)),
         r"pattern.observe: got 129; it must be ≤ train.context=128"),
        (lambda: config(PatternSection(dilation=None, top=[2, 3, 4, 5], block=8, over="heads"),
                        model=ModelSection(layers=2, d_model=64, d_head=16, kv_heads=2)),
         r"heads 0 to 1 of layer 0 share keys and values .*must have the same pattern, but have top2x8, top3x8"),
        (lambda: config(PatternSection(dilation=None, top=2, block=[8, 8, 16, 16], over="heads")),
         r"pattern.block: heads of layer 0 select blocks of 8 and 16 tokens"),
    ],
)  # fmt: skip
def test_impossible_values_are_refused(make, message):
    with pytest.raises(ValueError, match=message) as caught:
        make()
    assert "\n" not in str(caught.value)


@pytest.mark.parametrize(
    "section",
    [
        PatternSection(dilation=None, top=2, block=8, phase="decode"),
        PatternSection(dilation=None, top=2, block=8, phase="prefill"),
        PatternSection(dilation=[1, None], snap=[None, 32], observe=8),
    ],
)
def test_what_has_no_loss_is_refused_with_what_to_do(section):
    with pytest.raises(
        ValueError,
        match=r"set eval.text_rows=0 eval.recall_rows=0 eval.cloze.items=0, and evaluate by generation: eval.niah",
    ):
        config(section, eval=EvalSection(cloze=ClozeSection(items=4)))
    with pytest.raises(ValueError, match=r"nothing trains with it; set train.adapt.dense=true .* train.adapt.steps=0"):
        config(section, eval=NO_LOSS)
    sft = SftSection(tasks=["niah_single_1"], steps=3)
    train = TrainSection(context=128, pretrain=RecipeSection(sparse=True), adapt=RecipeSection(steps=0), sft=sft)
    with pytest.raises(ValueError, match=r"set train.pretrain.sparse=false, train.sft.dense=true"):
        config(section, eval=NO_LOSS, train=train)
    config(section, eval=NO_LOSS, train=UNTRAINED)
    config(section, eval=NO_LOSS, train=TrainSection(context=128, adapt=RecipeSection(dense=True, arl=True)))


def test_training_dense_is_shared_by_all_patterns():
    """The paper's protocol: joint fine-tuning with D*, selection at inference only."""
    train = TrainSection(
        context=128, adapt=RecipeSection(steps=0, dense=True),
        sft=SftSection(tasks=["niah_single_1"], steps=3, dense=True, arl=True),
    )  # fmt: skip
    dense = config(PatternSection(), train=train)
    top = config(PatternSection(dilation=None, top=2, block=8), train=train)
    for name in ("pretrain", "adapt", "sft"):
        assert ids(dense)[name] == ids(top)[name]
    assert ids(dense)["evaluate"] != ids(top)["evaluate"]
    # What a dense cell is trained with is dense either way.
    plain = TrainSection(context=128, adapt=RecipeSection(steps=5))
    same = TrainSection(context=128, adapt=RecipeSection(steps=5, dense=True))
    assert ids(config(PatternSection(), train=plain)) == ids(config(PatternSection(), train=same))
    sparse = PatternSection(dilation=16)
    assert ids(config(sparse, train=plain))["adapt"] != ids(config(sparse, train=same))["adapt"]


def test_pretraining_and_adaptation_refuse_what_means_nothing():
    with pytest.raises(ValueError, match=r"train.pretrain.dense: got True; pretraining is dense unless"):
        TrainSection(pretrain=RecipeSection(dense=True))
    with pytest.raises(ValueError, match=r"train.adapt.arl: got True; .*or train.adapt.dense=true"):
        TrainSection(adapt=RecipeSection(arl=True))


def test_ids_of_patterns_of_before():
    """Recorded with the commit before patterns had a selection."""
    train = TrainSection(context=128, sft=SftSection(tasks=["niah_single_1"], steps=3, arl=True))
    found = ids(config(PatternSection(), train=train))
    assert found == {
        "pretrain": "162279a60c75", "adapt": "d14ca1472647", "sft": "668350f83f62", "evaluate": "1844de58d282",
    }  # fmt: skip
    found = ids(config(PatternSection(dilation=[16, None], window=3), train=train))
    assert found == {
        "pretrain": "162279a60c75", "adapt": "6ea62e15c15a", "sft": "b4067625d261", "evaluate": "eaa15f6167bf",
    }  # fmt: skip
