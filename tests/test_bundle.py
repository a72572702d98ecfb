"""`featpipe bundle`: one file that is the head's equal, or none."""

from __future__ import annotations

import json
import shutil
from dataclasses import replace
from pathlib import Path

import numpy as np
import onnx
import onnxruntime
import pytest
from conftest import LIVING, PHOTOS, build_tiny_backbone
from convnet import build_convnet
from onnx import helper
from PIL import Image
from sklearn.neighbors import KNeighborsClassifier
from sklearn.pipeline import Pipeline

import featpipe
from featpipe.backbones import load_backbone
from featpipe.bundling import Agreement, BundleOptions, bundle, verify
from featpipe.bundling.assemble import Parts, assemble
from featpipe.bundling.pictures import draw_pictures
from featpipe.errors import BundleError, SourceError
from featpipe.heads import HEADS, load_head
from featpipe.images import decode_image, whole_picture
from featpipe.training import fit

NAMES = ["label", "label_index", "probabilities", "embedding"]


@pytest.fixture(scope="module")
def fitted(tmp_path_factory):
    """Return a folder with photographs of two classes, and a function that fits heads on them."""
    return heads_on(tmp_path_factory.mktemp("bundle"), load_backbone().path)


@pytest.fixture(scope="module")
def small(tmp_path_factory):
    """Return the same with a backbone of four convolutions, and its file."""
    root = tmp_path_factory.mktemp("small")
    model = build_convnet(root / "convnet.onnx")
    return (*heads_on(root, model), model)


def heads_on(root, model):
    for path in sorted(PHOTOS.glob("*.jpg")):
        folder = root / "photos" / ("living" if path.stem in LIVING else "things")
        folder.mkdir(parents=True, exist_ok=True)
        shutil.copy(path, folder)
    store = featpipe.embed(root / "photos", model=model, output=root / "store", device="cpu")

    def of(name, path=None):
        head = fit(store, name, cv=2, check=False, tune=False, baselines=False)
        return head if path is None else head.save(path)

    return root, of


def run(path, images):
    session = onnxruntime.InferenceSession(path, providers=["CPUExecutionProvider"])
    return dict(zip(NAMES, session.run(NAMES, {"images": images}), strict=True))


def expected(head, path, model=None):
    backbone = load_backbone(model)
    pixels = decode_image(path.read_bytes(), backbone.card.resize).pixels
    vector = backbone.open_session("cpu").run(pixels[None])
    return head.predict_proba(vector), vector


@pytest.mark.parametrize("name", ["logreg", "svm-rbf"])
def test_photographs_through_the_built_in_backbone(fitted, tmp_path, name):
    """Label, probabilities and embedding of a photograph are those that featpipe gives it."""
    root, of = fitted
    head = of(name)
    report = bundle(head, tmp_path / "classifier.onnx")
    assert report.agreement.holds
    assert report.agreement.images == len(list(PHOTOS.glob("*.jpg")))
    assert report.verified_on == f"{report.agreement.images} pictures of photos"
    assert report.size == (tmp_path / "classifier.onnx").stat().st_size
    path = min((root / "photos").rglob("*.jpg"))
    found = run(tmp_path / "classifier.onnx", whole_picture(path.read_bytes())[None])
    probabilities, vector = expected(head, path)
    assert np.abs(found["probabilities"] - probabilities).max() < 1e-5
    assert np.abs(found["embedding"] - vector).max() < 1e-4
    assert found["label"].tolist() == head.predict(vector).tolist()
    assert found["label_index"].tolist() == probabilities.argmax(axis=1).tolist()


@pytest.mark.parametrize("name", HEADS)
def test_every_head(small, tmp_path, name):
    """All seven heads agree, picture by picture and in a batch."""
    root, of, model = small
    head = of(name)
    assert bundle(head, tmp_path / "c.onnx", model=model).agreement.holds
    paths = sorted((root / "photos").rglob("*.jpg"))[:3]
    pictures = [whole_picture(path.read_bytes())[:200, :250] for path in paths]
    found = run(tmp_path / "c.onnx", np.stack(pictures))
    alone = [run(tmp_path / "c.onnx", picture[None])["label"][0] for picture in pictures]
    assert found["label"].tolist() == alone
    assert found["label"].tolist() == head.predict(found["embedding"]).tolist()


@pytest.mark.parametrize("name", ["logreg", "knn"])
def test_how_strange_an_image_is(small, tmp_path, name):
    """Score and p-value are the head's; noise is stranger than what the head was fitted on."""
    root, of, model = small
    head = of(name)
    bundle(head, tmp_path / "c.onnx", model=model)
    session = onnxruntime.InferenceSession(tmp_path / "c.onnx")
    noise = np.random.default_rng(0).integers(0, 256, (300, 400, 3), dtype=np.uint8)
    photo = whole_picture(min((root / "photos").rglob("*.jpg")).read_bytes())
    for picture in (photo, noise):
        vector, score, p = session.run(
            ["embedding", "ood_score", "ood_p"], {"images": picture[None]}
        )
        assert np.abs(score - head.ood_scores(vector)).max() < 1e-3
        assert np.abs(p - head.ood_p_values(vector)).max() < 1e-6
    bundle(replace(head, novelty=None), tmp_path / "former.onnx", model=model)
    names = [o.name for o in onnxruntime.InferenceSession(tmp_path / "former.onnx").get_outputs()]
    assert names == NAMES


def test_a_strangeness_that_differs_is_not_written(small, tmp_path, monkeypatch):
    """Out-of-distribution scores are compared, too, in 32 bits and then in 64."""
    _, of, model = small
    monkeypatch.setattr(verify, "MOST_APART_STRANGE", -1.0)
    with pytest.raises(BundleError) as error:
        bundle(of("logreg"), tmp_path / "c.onnx", model=model)
    assert "of 10 labels equal, probabilities within " in str(error.value)
    assert ", out-of-distribution scores within " in str(error.value)
    assert not (tmp_path / "c.onnx").exists()


def test_the_file_needs_nothing_but_standard_operators_and_tells_of_itself(fitted, tmp_path):
    """Domain ai.onnx alone; labels, card and verification inside; equal heads, equal bytes."""
    _, of = fitted
    head = of("knn")
    first, second = tmp_path / "a.onnx", tmp_path / "b.onnx"
    bundle(head, first)
    bundle(head, second)
    assert first.read_bytes() == second.read_bytes()
    model = onnx.load(first)
    assert {node.domain for node in model.graph.node} == {""}
    assert [entry.domain for entry in model.opset_import] == [""]
    about = {entry.key: json.loads(entry.value) for entry in model.metadata_props}
    assert about["featpipe.labels"] == ["living", "things"]
    told = about["featpipe.bundle"]
    assert (told["head"], told["precision"], told["resize"]) == ("knn", "fp32", True)
    assert told["backbone"]["name"] == "efficientnet_lite0"
    assert told["verified"]["labels_equal"] == told["verified"]["images"]
    assert str(tmp_path) not in first.read_bytes().decode("latin-1")


def test_without_resize_the_square_is_taken(small, tmp_path):
    """The input is what the backbone reads, and nothing else fits."""
    root, of, model = small
    head = of("logreg")
    path = tmp_path / "fixed.onnx"
    report = bundle(head, path, options=BundleOptions(resize=False), model=model)
    assert report.agreement.holds
    assert onnxruntime.InferenceSession(path).get_inputs()[0].shape == ["N", 32, 32, 3]
    photo = min((root / "photos").rglob("*.jpg"))
    pixels = decode_image(photo.read_bytes(), load_backbone(model).card.resize).pixels
    found = run(path, np.stack([pixels, pixels]))
    probabilities, _ = expected(head, photo, model)
    assert np.abs(found["probabilities"] - probabilities).max() < 1e-5


def test_half_precision_says_what_it_costs(small, tmp_path):
    """Smaller, verified on its own vectors, and compared with the backbone in fp32."""
    _, of, model = small
    head = of("logreg")
    whole = bundle(head, tmp_path / "whole.onnx", model=model)
    half = bundle(head, tmp_path / "half.onnx", model=model, options=BundleOptions("fp16"))
    assert half.size < whole.size
    assert half.agreement.holds
    assert half.smaller is not None
    assert 0 < half.smaller.largest_difference < 0.2
    assert "beside the backbone in fp32: " in str(half)
    assert whole.smaller is None


def test_int8_needs_pictures(small, tmp_path):
    """Where the training images are gone, and none are named, int8 cannot be calibrated."""
    _, of, model = small
    head = of("logreg")
    orphan = replace(head, report={**head.report, "data": {**head.report["data"], "store": "gone"}})
    with pytest.raises(SourceError) as error:
        bundle(orphan, tmp_path / "small.onnx", options=BundleOptions("int8"), model=model)
    assert str(error.value) == (
        "int8 is calibrated on images, and those that the head was fitted on are not where they "
        "were: give a folder of some with --images"
    )
    assert not (tmp_path / "small.onnx").exists()


def test_int8_of_a_small_backbone(tmp_path, shared):
    """A quarter of the weights' size, and the head on its own vectors to 1e-4."""
    model = build_convnet(tmp_path / "convnet.onnx")
    photos = shared / "datasets" / "hymenoptera_data" / "val"
    store = featpipe.embed(photos, model=model, output=tmp_path / "store", device="cpu")
    head = fit(store, "centroid", check=False, baselines=False, cv=2)
    options = BundleOptions("int8")
    report = bundle(head, tmp_path / "c.onnx", model=model, options=options)
    assert report.agreement.holds
    assert report.smaller is not None
    assert report.smaller.labels_equal >= 0.9 * report.smaller.images
    kinds = {node.op_type for node in onnx.load(tmp_path / "c.onnx").graph.node}
    assert "DequantizeLinear" in kinds


def test_int8_that_changes_labels_is_not_written(tmp_path, shared):
    """More than one label in ten that differs from the backbone in fp32 is too many."""
    model = build_convnet(tmp_path / "convnet.onnx")
    photos = shared / "datasets" / "hymenoptera_data" / "val"
    store = featpipe.embed(photos, model=model, output=tmp_path / "store", device="cpu")
    head = fit(store, "centroid", check=False, baselines=False, cv=2)
    with pytest.MonkeyPatch.context() as patch:
        patch.setattr("featpipe.bundling.run.FEWEST_EQUAL", 1.5)
        with pytest.raises(BundleError, match=r"^the head does not bear int8: "):
            bundle(head, tmp_path / "c.onnx", model=model, options=BundleOptions("int8"))
    assert not (tmp_path / "c.onnx").exists()


def test_photographs_that_came_along_stand_in(small, tmp_path):
    """A head whose images are gone is verified on featpipe's own photographs."""
    _, of, model = small
    head = of("logreg")
    orphan = replace(head, report={})
    report = bundle(orphan, tmp_path / "c.onnx", model=model)
    assert report.verified_on == "7 photographs that come with featpipe"
    assert draw_pictures(orphan, None).source is None


def test_pictures_of_ones_own(small, tmp_path):
    """`images` names other pictures; broken ones among them are passed over, none is an error."""
    _, of, model = small
    head = of("logreg")
    folder = tmp_path / "mine"
    folder.mkdir()
    (folder / "broken.jpg").write_bytes(b"\xff\xd8\xff nothing")
    with pytest.raises(SourceError) as error:
        bundle(head, tmp_path / "c.onnx", images=folder, model=model)
    assert str(error.value) == (f"no image in {folder} can be decoded: give others with --images")
    shutil.copy(min(PHOTOS.glob("*.jpg")), folder)
    report = bundle(head, tmp_path / "c.onnx", images=folder, model=model)
    assert report.verified_on == "1 pictures of mine"


def test_pictures_are_of_all_classes(small, tmp_path, monkeypatch):
    """Of a listing that is not much longer than the sample, and where only a few fit, too."""
    _, of, _ = small
    for name, colour, n in (("black", 0, 60), ("white", 255, 30)):
        (tmp_path / name).mkdir()
        for i in range(n):
            Image.new("L", (4, 3), colour).save(tmp_path / name / f"{i:02d}.png")
    drawn = draw_pictures(of("centroid"), tmp_path).pictures
    assert len(drawn) == 48
    assert {int(picture.max()) for picture in drawn} == {0, 255}
    monkeypatch.setattr("featpipe.bundling.pictures._MOST_PIXELS", 100)
    few = draw_pictures(of("centroid"), tmp_path).pictures
    assert len(few) == 9
    assert {int(picture.max()) for picture in few} == {0, 255}


def test_a_batch_of_large_pictures_is_not_made(small, tmp_path, monkeypatch):
    """Whether a batch mixes its images is seen on a corner of one, which fits into memory."""
    _, of, model = small
    (tmp_path / "large").mkdir()
    Image.new("RGB", (1500, 900), (9, 90, 200)).save(tmp_path / "large" / "one.png")
    real, shapes = verify._run, []

    def seen(session, images, parts):
        shapes.append(images.shape)
        return real(session, images, parts)

    monkeypatch.setattr(verify, "_run", seen)
    bundle(of("logreg"), tmp_path / "c.onnx", images=tmp_path / "large", model=model)
    assert shapes == [(1, 900, 1500, 3), *((n, 512, 512, 3) for n in (1, 2, 3))]


@pytest.mark.parametrize("store", ["a\0b", "no such store", 5, None])
def test_a_record_that_was_edited_names_no_pictures(small, store):
    """A head from a stranger may name anything as its store: featpipe's own pictures stand in."""
    _, of, _ = small
    head = replace(of("centroid"), report={"data": {"store": store}})
    assert draw_pictures(head, None).origin == "photographs that come with featpipe"


def test_labels_that_utf_8_cannot_hold(small, tmp_path):
    """They are escaped wherever the file has them: not every reader of JSON takes halves."""
    _, of, model = small
    head = replace(of("centroid"), classes=("caf\udce9", "a\nb \N{GRINNING FACE}"))
    bundle(head, tmp_path / "c.onnx", model=model)
    about = {
        entry.key: json.loads(entry.value)
        for entry in onnx.load(tmp_path / "c.onnx").metadata_props
    }
    escaped = ["caf\\udce9", "a\nb \N{GRINNING FACE}"]
    assert about["featpipe.labels"] == about["featpipe.bundle"]["classes"] == escaped


def test_what_does_not_agree_is_not_written(small, tmp_path, monkeypatch):
    """A file that is there stays as it was, and the message has the figures."""
    _, of, model = small
    path = tmp_path / "c.onnx"
    path.write_bytes(b"former")
    monkeypatch.setattr(verify.Agreement, "of", lambda *_: Agreement(10, 9, 0.5))
    with pytest.raises(BundleError) as error:
        bundle(replace(of("logreg"), novelty=None), path, model=model)
    assert str(error.value) == (
        "the bundle of this logreg head does not agree with scikit-learn, pictures of photos: 9 of "
        "10 labels equal, probabilities within 0.5 where all labels and 0.0001 are needed: nothing "
        "was written; another kind of head may do"
    )
    assert path.read_bytes() == b"former"
    assert [p.name for p in tmp_path.iterdir()] == ["c.onnx"]


def test_64_bits_where_32_do_not_reach(small, tmp_path, monkeypatch):
    """The head is written in doubles when floats are too coarse."""
    _, of, model = small
    real = verify.Agreement.of
    tried = []

    def strict(expected, found, classes):
        tried.append(len(found))
        return real(expected, found, classes) if len(tried) > 1 else Agreement(7, 6, 0.5)

    monkeypatch.setattr(verify.Agreement, "of", strict)
    report = bundle(of("lda"), tmp_path / "c.onnx", model=model)
    assert report.head_bits == 64
    assert report.agreement.holds


def test_agreement_counts_labels_and_the_largest_difference():
    """One label that differs, or one probability that is too far, is no agreement."""
    a = np.array([[0.6, 0.4], [0.3, 0.7]])
    assert Agreement.of(a, a).holds
    assert not Agreement.of(a, a + np.array([[2e-4, -2e-4], [0, 0]])).holds
    swapped = Agreement.of(a, a[::-1])
    assert (swapped.images, swapped.labels_equal) == (2, 0)
    assert not Agreement(48, 48, 0.0, float("nan")).holds
    assert str(Agreement(48, 47, 0.25)) == "47 of 48 labels equal, probabilities within 0.2"


def test_a_backbone_of_another_domain_is_refused(small, tmp_path):
    """Operators that few runtimes have keep a bundle from being made."""
    _, of, model = small
    head = of("logreg")
    foreign = onnx.load(model)
    foreign.graph.node.append(
        helper.make_node("Gelu", ["embedding"], ["unused"], domain="com.microsoft")
    )
    foreign.opset_import.append(helper.make_opsetid("com.microsoft", 1))
    card = load_backbone(model).card
    parts = Parts(foreign.SerializeToString(), card, head, True, True, np.float32)
    with pytest.raises(BundleError) as error:
        assemble(parts)
    assert str(error.value) == (
        "the backbone convnet needs operators of the domain com.microsoft, which few "
        "runtimes have: nothing was written; export it with standard operators"
    )


def test_neighbours_of_a_former_featpipe_are_refused(small, tmp_path):
    """scikit-learn's own estimator, which former heads have, is not taken apart."""
    _, of, model = small
    head = of("knn")
    rows = head.pipeline[-1]
    former = KNeighborsClassifier(3, metric="cosine", weights="distance", algorithm="brute")
    former.fit(rows.rows_, rows.labels_)
    old = replace(head, pipeline=Pipeline([head.pipeline.steps[0], ("head", former)]))
    with pytest.raises(BundleError) as error:
        bundle(old, tmp_path / "c.onnx", model=model)
    assert str(error.value) == (
        "this knn head was fitted by a former featpipe, with another estimator: fit it again, then "
        "bundle it"
    )


def test_a_backbone_with_branches_is_refused(small):
    """What stands in a subgraph would be overlooked."""
    _, of, model = small
    branched = onnx.load(model)
    branch = helper.make_graph(
        [helper.make_node("Identity", ["embedding"], ["same"])],
        "branch",
        [],
        [helper.make_tensor_value_info("same", onnx.TensorProto.FLOAT, None)],
    )
    branched.graph.node.append(
        helper.make_node("If", ["always"], ["unused"], then_branch=branch, else_branch=branch)
    )
    card = load_backbone(model).card
    with pytest.raises(BundleError) as error:
        assemble(Parts(branched.SerializeToString(), card, of("svm"), True, True, np.float32))
    assert str(error.value) == (
        "the backbone convnet has branches or loops, which a bundle cannot hold: nothing was "
        "written; export it without them"
    )


def test_names_of_the_backbone_that_are_outputs_here_are_changed(small):
    """A backbone whose inner value is called as an output of a bundle is no obstacle."""
    _, of, model = small
    named = onnx.load(model)
    for node in named.graph.node:
        node.input[:] = ["label" if name == "stem_relu" else name for name in node.input]
        node.output[:] = ["label" if name == "stem_relu" else name for name in node.output]
    card = load_backbone(model).card
    made = assemble(Parts(named.SerializeToString(), card, of("svm"), True, True, np.float32))
    assert "featpipe/backbone/label" in {name for node in made.graph.node for name in node.output}


@pytest.mark.parametrize("opset", [11, 12, 17])
def test_old_opsets_are_brought_up(tmp_path, photos, opset):
    """A backbone of an opset before 13 is converted, and agrees."""
    model = build_convnet(tmp_path / "convnet.onnx", opset=opset)
    store = featpipe.embed(photos, model=model, output=tmp_path / "store", device="cpu")
    head = fit(store, "logreg", cv=2, check=False, baselines=False, tune=False)
    report = bundle(head, tmp_path / "c.onnx", model=model)
    assert report.agreement.holds
    assert onnx.load(tmp_path / "c.onnx").opset_import[0].version >= 13


def test_too_large_for_one_file(small, monkeypatch):
    """More than one file holds is said before anything is run."""
    _, of, model = small
    monkeypatch.setattr("featpipe.bundling.assemble._MAX_BYTES", 1000)
    card = load_backbone(model).card
    with pytest.raises(BundleError) as error:
        assemble(Parts(model.read_bytes(), card, of("knn"), True, True, np.float32))
    assert str(error.value).startswith("convnet and its head need 0.0 GB, more than")


def test_command(fitted, tmp_path, run_cli, monkeypatch):
    """The command writes beside you by default, says what it found, and speaks JSON."""
    root, of = fitted
    monkeypatch.chdir(tmp_path)
    of("ridge", root / "heads" / "photos-ridge")
    result = run_cli("bundle", root / "heads" / "photos-ridge")
    assert result.code == 0
    assert result.out.startswith("ridge on efficientnet_lite0, fp32: 2 classes, 13.5 MB\n")
    assert "beside scikit-learn, 10 pictures of photos: 10 of 10 labels equal" in result.out
    assert result.err == "bundle → photos-ridge.onnx\n"
    assert Path("photos-ridge.onnx").exists()
    told = json.loads(
        run_cli("bundle", root / "heads" / "photos-ridge", "-o", "x.onnx", "--json").out
    )
    assert told["agreement"]["labels_equal"] == 10
    assert told["path"] == "x.onnx"
    assert load_head(root / "heads" / "photos-ridge").name == "ridge"


def test_command_refuses(small, tmp_path, run_cli, monkeypatch):
    """A name that is no ONNX file, a backbone that is not the head's, a head that is none."""
    root, of, model = small
    head = of("centroid", root / "heads" / "photos-centroid")
    result = run_cli("bundle", head, "-o", tmp_path / "c.bin", "--model", model)
    assert (result.code, result.err) == (
        5,
        f"Error: cannot write a bundle to {tmp_path / 'c.bin'}: give a name that ends in .onnx\n",
    )
    (tmp_path / "folder.onnx").mkdir()
    result = run_cli("bundle", head, "-o", tmp_path / "folder.onnx", "--model", model)
    assert (result.code, result.err) == (
        5,
        f"Error: cannot write a bundle to {tmp_path / 'folder.onnx'}: it is a folder; give the "
        "name of a file that ends in .onnx\n",
    )
    build_tiny_backbone(tmp_path / "other.onnx", name="other")
    result = run_cli("bundle", head, "-o", tmp_path / "c.onnx", "--model", tmp_path / "other.onnx")
    assert result.code == 5
    assert "was fitted on" in result.err
    assert not (tmp_path / "c.onnx").exists()
    result = run_cli("bundle", tmp_path, "-o", tmp_path / "c.onnx")
    assert result.code == 7
