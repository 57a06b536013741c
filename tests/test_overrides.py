"""`--override dotted.path=value` on a pipeline config."""

import pytest

pytest.importorskip("object_detection.protos.pipeline_pb2", reason="the OD API is not installed")

from object_detection.protos import pipeline_pb2  # noqa: E402

from od_qat.errors import ConfigError  # noqa: E402
from od_qat.messages import overrides  # noqa: E402
from od_qat.od_api import pipeline  # noqa: E402
from tests.zoo import samples  # noqa: E402

pytestmark = pytest.mark.tf1

TPU = "ssd_mobilenet_v1_0.75_depth_quantized_300x300_pets_sync"
SSDLITE = "ssdlite_mobilenet_v2_coco_quantize"
MOBILEDET = "ssdlite_mobiledet_edgetpu_320x320_coco_sync_4x4"


@pytest.fixture()
def config():
    return samples.message(samples.rows()[TPU])


def _apply(config, *given):
    for override in given:
        overrides.apply(config, override)
    return config


def test_values_of_all_kinds(config):
    _apply(
        config,
        "train_config.batch_size=2",
        "train_config.sync_replicas=false",
        "train_config.fine_tune_checkpoint=/my runs/model.ckpt-5",
        "train_config.gradient_clipping_by_norm=1e1",
        "graph_rewriter.quantization.delay=0",
        "model.ssd.num_classes=3",
        "model.ssd.post_processing.score_converter=SOFTMAX",
        "train_config.optimizer.momentum_optimizer.learning_rate.cosine_decay_learning_rate.learning_rate_base=.01",
    )
    train = config.train_config
    assert (train.batch_size, train.sync_replicas, train.gradient_clipping_by_norm) == (2, False, 10.0)
    assert train.fine_tune_checkpoint == "/my runs/model.ckpt-5"
    assert config.graph_rewriter.quantization.delay == 0
    assert config.model.ssd.num_classes == 3
    assert config.model.ssd.post_processing.score_converter == 2
    rate = train.optimizer.momentum_optimizer.learning_rate.cosine_decay_learning_rate
    assert rate.learning_rate_base == pytest.approx(0.01) and rate.total_steps == 2000


@pytest.mark.parametrize("index", [".0", "[0]"])
def test_one_element_of_a_list(config, index):
    reader = "train_input_reader.tf_record_input_reader.input_path"
    _apply(config, reader + "=/a", reader + "[1]=/b", reader + index + "=/c")
    assert list(config.train_input_reader.tf_record_input_reader.input_path) == ["/c", "/b"]
    _apply(config, "eval_input_reader{}.tf_record_input_reader.input_path{}=/d".format(index, index))
    _apply(config, "eval_input_reader{}.label_map_path=/e".format(index))
    assert list(config.eval_input_reader[0].tf_record_input_reader.input_path) == ["/d"]
    assert config.eval_input_reader[0].label_map_path == "/e"
    _apply(config, "eval_input_reader.label_map_path=/f", "eval_input_reader[1].label_map_path=/g")
    assert [reader.label_map_path for reader in config.eval_input_reader] == ["/f", "/g"]


def test_whole_lists_and_messages(config):
    ratios = "model.ssd.anchor_generator.ssd_anchor_generator.aspect_ratios"
    _apply(config, ratios + "=[1, 2]")
    assert list(config.model.ssd.anchor_generator.ssd_anchor_generator.aspect_ratios) == [1.0, 2.0]
    _apply(config, ratios + "=3")
    assert list(config.model.ssd.anchor_generator.ssd_anchor_generator.aspect_ratios) == [3.0]
    _apply(config, 'eval_input_reader.tf_record_input_reader.input_path=["/a", "/b"]')
    assert len(config.eval_input_reader[0].tf_record_input_reader.input_path) == 2
    _apply(config, "train_config.data_augmentation_options[1]=random_adjust_hue { }")
    names = [o.WhichOneof("preprocessing_step") for o in config.train_config.data_augmentation_options]
    assert names == ["random_horizontal_flip", "random_adjust_hue"]
    for braces in ("quantization { delay: 7 }", "{ quantization { delay: 7 } }"):
        _apply(config, "graph_rewriter=", "graph_rewriter=" + braces)
        assert config.graph_rewriter.quantization.delay == 7


def test_an_optimizer_takes_the_place_of_another(config, capsys):
    rate = "train_config.optimizer.adam_optimizer.learning_rate.constant_learning_rate.learning_rate"
    _apply(config, rate + "=0.001")
    assert config.train_config.optimizer.WhichOneof("optimizer") == "adam_optimizer"
    (said,) = capsys.readouterr().err.splitlines()
    assert "adam_optimizer replaces the config's" in said
    _apply(config, rate + "=0.002")
    assert capsys.readouterr().err == ""


def test_nothing_behind_the_equals_sign_clears(config):
    _apply(
        config,
        "train_config.fine_tune_checkpoint=",
        "train_config.num_steps=",
        "train_config.data_augmentation_options[0]=",
        "graph_rewriter=",
        "eval_input_reader=",
    )
    assert config.train_config.fine_tune_checkpoint == ""  # from scratch
    assert not config.train_config.HasField("num_steps")
    assert len(config.train_config.data_augmentation_options) == 1
    assert config.train_config.data_augmentation_options[0].HasField("ssd_random_crop")
    assert not config.HasField("graph_rewriter")
    assert len(config.eval_input_reader) == 0


def test_a_block_that_was_not_there_is_made():
    config = _apply(samples.message(samples.rows()[MOBILEDET]), "graph_rewriter.quantization.delay=0")
    assert config.HasField("graph_rewriter") and config.graph_rewriter.quantization.delay == 0


@pytest.mark.parametrize(
    "override, says",
    [
        (
            "train_config.batchsize=2",
            r"at train_config.batchsize, found .*allowed: batch_size, .*Fix: write train_config.batch_size$",
        ),
        (
            "batch_size=2",
            r"found batch_size, allowed: model, train_config.*Fix: the config has train_config.batch_size$",
        ),
        ("delay=0", r"Fix: the config has graph_rewriter.quantization.delay$"),
        ("graph_rewriter.quantisation.delay=0", r"Fix: write graph_rewriter.quantization$"),
        (
            "train_config.zzz=0",
            r"found train_config.zzz, allowed: batch_size, .*use_bfloat16, summarize_gradients$",
        ),
        (
            "train_config.batch_size=many",
            r"at train_config.batch_size, found 'many', allowed: a whole number",
        ),
        ("train_config.batch_size=-2", r"found '-2', allowed: a whole number from 0"),
        ("train_config.batch_size=2 num_steps: 3", r"found '2 num_steps: 3', allowed: a whole number"),
        ("train_config.data_augmentation_options=[]", r"found '\[\]'. Fix: \S+options= clears the field"),
        ("train_config.freeze_variables=[]", r"found '\[\]'. Fix: \S+variables= clears the field"),
        ("train_config.sync_replicas=maybe", r"found 'maybe', allowed: true or false"),
        ("model.ssd.post_processing.score_converter=SIGMOIDAL", r"allowed: IDENTITY, SIGMOID"),
        ("train_config.batch_size.x=2", r"found x, allowed: train_config.batch_size=a whole number"),
        ("train_config.batch_size[0]=2", r"found 0, allowed: train_config.batch_size=a whole number"),
        ("eval_input_reader[2].shuffle=true", r"found eval_input_reader\[2\], allowed: 0 to 1"),
        ("eval_input_reader[1]=", r"found eval_input_reader\[1\], allowed: 0"),
        ("graph_rewriter=quantization { dely: 3 }", r"no field named \"dely\".*allowed: \{ quantization"),
        ("[0]=2", "malformed override"),
        ("train_config..batch_size=2", "malformed override"),
    ],
)
def test_what_is_wrong_is_said_and_nothing_changes(config, override, says):
    before = type(config).FromString(config.SerializeToString())
    with pytest.raises(ConfigError, match=says):
        overrides.apply(config, override)
    assert config == before


def test_published_fields_that_no_proto_has_are_passed_over_when_false(tmp_path):
    path = tmp_path / "sample.config"
    text = samples.text(samples.rows()[SSDLITE])
    assert "include_global_step: False" in text
    path.write_text(text)
    config = pipeline.load(str(path))
    assert config == samples.message(samples.rows()[SSDLITE])
    assert isinstance(config, pipeline_pb2.TrainEvalPipelineConfig)
    path.write_text(text.replace("include_global_step: False", "include_global_step: True"))
    line = text[: text.index("include_global_step")].count("\n") + 1
    with pytest.raises(
        ConfigError, match=r"sample.config, line {}, found .*include_global_step".format(line)
    ):
        pipeline.load(str(path))


@pytest.mark.parametrize(
    "given, says",
    [
        (
            (),
            r"at train_input_reader.label_map_path, found PATH_TO_.*Fix: pass --override train_input_reader",
        ),
        (
            ("train_input_reader.label_map_path=/a",),
            r"at train_input_reader.tf_record_input_reader.input_path\[0\], found PATH_TO_",
        ),
        (
            (
                "train_input_reader.label_map_path=/a",
                "train_input_reader.tf_record_input_reader.input_path[0]=/b",
            ),
            r"--override train_config.fine_tune_checkpoint=PATH, or --override "
            r"train_config.fine_tune_checkpoint= to train from scratch$",
        ),
    ],
)
def test_paths_that_are_still_to_be_filled_in_are_named(tmp_path, given, says):
    commands = pytest.importorskip("od_qat.commands")
    path = tmp_path / "sample.config"
    path.write_text(samples.text(samples.rows()[TPU]))
    with pytest.raises(ConfigError, match=says):
        commands.train(str(path), str(tmp_path / "train"), given)
    if not given:
        with pytest.raises(ConfigError, match=r"at eval_input_reader\[0\].label_map_path"):
            commands.evaluate(str(path), str(tmp_path / "train"), str(tmp_path / "eval"))
