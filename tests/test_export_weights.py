"""Weights from files: wrapped in every usual way, read without running code, fitted or refused."""

from __future__ import annotations

import lzma
import pickle
import shutil
from collections.abc import Callable
from pathlib import Path
from typing import Any

import pytest

torch = pytest.importorskip("torch", reason="the `export` extra (torch) is not installed")
safetensors = pytest.importorskip("safetensors.torch", reason="safetensors is not installed")
pytest.importorskip("torchvision", reason="the `export` extra (torchvision) is not installed")
pytest.importorskip("timm", reason="the `export` extra (timm) is not installed")

from networks import conditioned  # noqa: E402 - after the skip

from featpipe.backbones import export, load_backbone  # noqa: E402
from featpipe.backbones.export import (  # noqa: E402
    ExportOptions,
    download,
    from_timm,
    from_torchvision,
)
from featpipe.backbones.export.checkpoints import fit_weights, read_weights  # noqa: E402
from featpipe.backbones.gate import compare, photographs  # noqa: E402
from featpipe.errors import BackboneError  # noqa: E402

pytestmark = pytest.mark.export


@pytest.fixture(scope="module")
def state() -> dict[str, Any]:
    """Weights of a ResNet-18 that is neither trained nor trivial."""
    return dict(conditioned(from_torchvision.untrained("resnet18"), 64).state_dict())


def fitted(path: Path) -> dict[str, Any]:
    """Read a file, fit it to a fresh ResNet-18 without classifier, return what that holds."""
    model = from_torchvision.untrained("resnet18")
    head = from_torchvision.remove_classifier(model)
    fit_weights(model, read_weights(path), (head,), "resnet18")
    return dict(model.state_dict())


def prefixed(prefix: str) -> Callable[[dict[str, Any]], dict[str, Any]]:
    return lambda state: {f"{prefix}{k}": v for k, v in state.items()}


def other_head(state: dict[str, Any]) -> dict[str, Any]:
    """A classifier of two layers for seven classes."""
    body = {k: v for k, v in state.items() if not k.startswith("fc.")}
    return {**body, "fc.0.weight": torch.zeros(9, 512), "fc.1.weight": torch.zeros(7, 9)}


WRAPPED: dict[str, Callable[[dict[str, Any]], Any]] = {
    "plain": lambda s: s,
    "state_dict": lambda s: {"state_dict": s, "epoch": 3},
    "model": lambda s: {"model": s, "optimizer": {"state": {}}, "lr": 0.1},
    "ema": lambda s: {"model": {k: v * 0 for k, v in s.items()}, "model_ema": s},
    "nested": lambda s: {"state_dict": {"model": s}},
    "module": prefixed("module."),
    "compiled": prefixed("_orig_mod.module."),
    "part of more": lambda s: {**prefixed("backbone.")(s), "neck.weight": torch.zeros(3)},
    "other head": other_head,
    "no head": lambda s: {k: v for k, v in s.items() if not k.startswith("fc.")},
    "no counters": lambda s: {k: v for k, v in s.items() if "num_batches" not in k},
    "half": lambda s: {k: v.half() if v.is_floating_point() else v for k, v in s.items()},
}


@pytest.mark.parametrize("way", WRAPPED)
def test_usual_wrappers_are_taken_off(tmp_path: Path, state: dict[str, Any], way: str) -> None:
    """Every tensor but the classifier's arrives."""
    path = tmp_path / "weights.pth"
    torch.save(WRAPPED[way](state), path)
    found = fitted(path)
    for key, tensor in found.items():
        if "num_batches" not in key:
            assert torch.allclose(tensor, state[key], atol=1e-2 if way == "half" else 0.0), key


def test_safetensors_are_read(tmp_path: Path, state: dict[str, Any]) -> None:
    """The same weights, the same tensors."""
    path = tmp_path / "weights.safetensors"
    safetensors.save_file({k: v.contiguous() for k, v in state.items()}, path)
    found = fitted(path)
    assert all(torch.equal(found[k], state[k]) for k in found)


def refused(path: Path) -> str:
    with pytest.raises(BackboneError) as error:
        fitted(path)
    return str(error.value)


def test_what_does_not_fit_is_listed(tmp_path: Path, state: dict[str, Any]) -> None:
    """Missing, left over and of another shape, each by key and shape."""
    path = tmp_path / "weights.pth"
    changed = {**state, "layer4.9.weight": torch.zeros(2, 3), "bn1.bias": torch.zeros(7)}
    del changed["conv1.weight"]
    torch.save(changed, path)
    assert refused(path) == (
        f"the checkpoint {path} does not fit resnet18: 1 missing: conv1.weight (64, 3, 7, 7); "
        "1 left over: layer4.9.weight (2, 3); 1 of another shape: bn1.bias (7), not (64): choose "
        "the network that the weights were trained with"
    )


def test_a_larger_network_does_not_pass(tmp_path: Path) -> None:
    """ResNet-34 holds all tensors of ResNet-18 and more: that is not ResNet-18."""
    path = tmp_path / "weights.pth"
    torch.save(from_torchvision.untrained("resnet34").state_dict(), path)
    message = refused(path)
    assert message.startswith(f"the checkpoint {path} does not fit resnet18: 96 left over: ")
    assert " and 88 more: choose the network" in message


class Payload:
    """What a checkpoint must not run."""

    def __reduce__(self) -> Any:
        return (open, ("ran", "w"))


def test_code_in_a_checkpoint_is_not_run(
    tmp_path: Path, monkeypatch: pytest.MonkeyPatch, state: dict[str, Any]
) -> None:
    """A pickle with more than tensors is refused, and its code has not run."""
    monkeypatch.chdir(tmp_path)
    path = tmp_path / "weights.pth"
    torch.save({**state, "x": Payload()}, path)
    assert refused(path) == (
        f"the checkpoint {path} holds more than tensors, and loading that could run code, which "
        "featpipe does not: where you trust the file, load it with torch and save "
        "model.state_dict() alone"
    )
    path.write_bytes(pickle.dumps(Payload()))
    refused(path)
    assert not (tmp_path / "ran").exists()


@pytest.mark.parametrize("suffix", [".pth", ".safetensors"])
@pytest.mark.parametrize("content", [b"", b"not a checkpoint", b"PK\x03\x04" + b"x" * 50])
def test_damaged_files_are_named(tmp_path: Path, suffix: str, content: bytes) -> None:
    """Empty, foreign and cut files: a sentence with the file's name, never a traceback."""
    path = tmp_path / f"weights{suffix}"
    path.write_bytes(content)
    message = refused(path)
    assert message.startswith(f"the checkpoint {path} ")
    assert "\n" not in message


def test_a_truncated_checkpoint_is_named(tmp_path: Path, state: dict[str, Any]) -> None:
    """Half of a file."""
    whole, path = tmp_path / "whole.pth", tmp_path / "weights.pth"
    torch.save(state, whole)
    path.write_bytes(whole.read_bytes()[: whole.stat().st_size // 2])
    assert refused(path).startswith(f"the checkpoint {path} cannot be read by torch (")


def test_files_of_another_kind_are_named(tmp_path: Path) -> None:
    """No such file, another suffix, a dictionary without tensors."""
    assert refused(tmp_path / "none.pth") == (
        f"there is no checkpoint {tmp_path / 'none.pth'}: check the path"
    )
    assert refused(tmp_path / "weights.h5") == (
        f"{tmp_path / 'weights.h5'} is not a checkpoint that featpipe reads: give a .safetensors, "
        ".pth or .pt file, or the name of published weights (featpipe models NAME lists them)"
    )
    path = tmp_path / "numbers.pth"
    torch.save({"epoch": 3}, path)
    assert refused(path) == (
        f"the checkpoint {path} holds no tensors by name: save model.state_dict()"
    )


def test_a_checkpoint_of_ones_own_is_not_called_by_the_published_name(
    tmp_path: Path, state: dict[str, Any]
) -> None:
    """Nobody should take it for the published weights; the card says what it is."""
    for stem, name in (
        ("mine", "resnet18-mine"),
        ("resnet18", "resnet18-own"),
        ("resnet18-ants", "resnet18-ants"),
        ("resnet18.v1", "resnet18.v1"),
        ("модель", "resnet18-own"),
    ):
        path = tmp_path / f"{stem}.pth"
        torch.save(state, path)
        network = export.build_network("resnet18", ExportOptions(weights=str(path)))
        assert network.name == name
        assert network.card.weights.startswith(
            f"{stem}.pth, prepared as ResNet18_Weights.IMAGENET1K_V1, SHA-256 "
        )
        assert network.card.license == "that of the checkpoint, which names none"
        assert network.card.imagenet_top1 is None
        assert not network.published


def test_the_card_says_which_part_of_a_file_was_taken(
    tmp_path: Path, state: dict[str, Any]
) -> None:
    """Averaged weights, and a prefix: nobody has to guess."""
    path = tmp_path / "mine.pth"
    torch.save({"model": {}, "ema": prefixed("module.")(state)}, path)
    network = export.build_network("resnet18", ExportOptions(weights=str(path)))
    assert network.card.weights.startswith("mine.pth (ema.module), prepared as ")


def test_a_file_that_holds_the_network_twice_is_refused(
    tmp_path: Path, state: dict[str, Any]
) -> None:
    """Which of them is meant cannot be told, and is not guessed."""
    path = tmp_path / "weights.pth"
    torch.save({**prefixed("encoder_k.")(state), **prefixed("encoder_q.")(state)}, path)
    assert refused(path) == (
        f"the checkpoint {path} holds the network more than once, as 'encoder_k.' and "
        "'encoder_q.': save the one that is meant by itself"
    )


def test_integers_are_not_taken_for_weights(tmp_path: Path, state: dict[str, Any]) -> None:
    """Quantised weights without their scale would be other numbers."""
    path = tmp_path / "weights.pth"
    torch.save({**state, "conv1.weight": (state["conv1.weight"] * 99).to(torch.int8)}, path)
    assert refused(path) == (
        f"the checkpoint {path} does not fit resnet18: 1 of another type: conv1.weight torch.int8, "
        "not torch.float32: choose the network that the weights were trained with"
    )


def test_a_form_without_plain_numbers_is_refused(tmp_path: Path, state: dict[str, Any]) -> None:
    """Sparse and complex tensors are named."""
    path = tmp_path / "weights.pth"
    for tensor in (state["fc.weight"].to_sparse(), state["fc.weight"].to(torch.complex64)):
        torch.save({**state, "fc.weight": tensor}, path)
        assert refused(path) == (
            f"the checkpoint {path} holds 'fc.weight' in a form that has no plain numbers: save "
            "model.state_dict() of the network in float32"
        )


def test_a_dictionary_that_holds_itself_ends(tmp_path: Path) -> None:
    """Wrappers without end are no state dict."""
    loop: dict[str, Any] = {}
    loop["state_dict"] = loop
    path = tmp_path / "weights.pth"
    torch.save(loop, path)
    assert refused(path) == (
        f"the checkpoint {path} holds no tensors by name: save model.state_dict()"
    )


def test_a_damaged_old_checkpoint_is_a_sentence(tmp_path: Path) -> None:
    """The readers of the old format meet damage with any exception."""
    import random

    path = tmp_path / "weights.pth"
    model = torch.nn.Linear(3, 3).state_dict()
    torch.save(model, path, _use_new_zipfile_serialization=False)
    whole = path.read_bytes()
    rng = random.Random(0)
    for _ in range(60):
        damaged = bytearray(whole)
        for _ in range(3):
            damaged[rng.randrange(len(damaged))] = rng.randrange(256)
        path.write_bytes(damaged)
        try:
            read_weights(path)
        except BackboneError as error:
            assert str(path) in str(error)  # noqa: PT017 - some damage changes numbers only


def test_the_published_file_is_known_by_its_digest(
    tmp_path: Path, state: dict[str, Any], monkeypatch: pytest.MonkeyPatch
) -> None:
    """A file whose digest stands in the published name is those weights, whatever it is called."""
    path = tmp_path / "from-a-colleague.pth"
    torch.save(state, path)
    digest = read_weights(path).sha256
    monkeypatch.setattr(
        from_torchvision, "is_file_of", lambda sha, url: sha == digest and "resnet18" in url
    )
    network = export.build_network("resnet18", ExportOptions(weights=str(path)))
    assert network.name == "resnet18"
    assert network.card.weights == (f"torchvision ResNet18_Weights.IMAGENET1K_V1, SHA-256 {digest}")
    assert network.card.license == from_torchvision.LICENSE
    assert network.card.imagenet_top1 == 69.758


def test_the_digest_in_the_published_name_counts() -> None:
    """The first digits of SHA-256 stand in the file's name."""
    url = "https://example.org/models/resnet50-0676ba61.pth"
    assert from_torchvision.is_file_of("0676ba61" + "0" * 56, url)
    assert not from_torchvision.is_file_of("1676ba61" + "0" * 56, url)


def test_without_a_network_the_message_says_what_to_put_where(
    tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    """Nothing listens on that port of this machine: refused at once, and no file is left."""
    monkeypatch.setenv("TORCH_HOME", str(tmp_path))
    url = "http://127.0.0.1:9/models/resnet50-0676ba61.pth"
    with pytest.raises(BackboneError) as error:
        download.fetch(url, "V1 of resnet50")
    place = tmp_path / "hub" / "checkpoints" / "resnet50-0676ba61.pth"
    assert str(error.value) == (
        "the weights V1 of resnet50 cannot be fetched ([Errno 111] Connection refused): fetch "
        f"{url} on a machine with a network and put it at {place}, or name it with --weights FILE"
    )
    assert list(place.parent.iterdir()) == []


def test_a_silent_server_does_not_hang(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    """A server that accepts and never answers is given up."""
    import socket

    monkeypatch.setenv("TORCH_HOME", str(tmp_path))
    monkeypatch.setattr(download, "SECONDS", 0.3)
    with socket.create_server(("127.0.0.1", 0)) as server:
        url = f"http://127.0.0.1:{server.getsockname()[1]}/resnet50-0676ba61.pth"
        with pytest.raises(BackboneError) as error:
            download.fetch(url, "V1 of resnet50")
    assert "timed out" in str(error.value)


def test_a_file_put_in_place_by_hand_is_used(
    tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    """What the message asks for works."""
    monkeypatch.setenv("TORCH_HOME", str(tmp_path))
    place = tmp_path / "hub" / "checkpoints" / "resnet50-0676ba61.pth"
    place.parent.mkdir(parents=True)
    place.write_bytes(b"weights")
    assert download.fetch("http://127.0.0.1:9/resnet50-0676ba61.pth", "V1") == place


@pytest.mark.parametrize(
    "asked", [None, "IMAGENET1K_V1", "imagenet1k_v1", "ResNet18_Weights.IMAGENET1K_V1"]
)
def test_a_cached_file_that_is_another_one_is_refused(
    tmp_path: Path, monkeypatch: pytest.MonkeyPatch, state: dict[str, Any], asked: str | None
) -> None:
    """What stands under the published name must be the published file, however it is asked for."""
    monkeypatch.setenv("TORCH_HOME", str(tmp_path))
    chosen, _ = from_torchvision.choose_weights("resnet18", None)
    place = tmp_path / "hub" / "checkpoints" / chosen.url.rpartition("/")[2]
    place.parent.mkdir(parents=True)
    torch.save(state, place)
    digest = read_weights(place).sha256
    with pytest.raises(BackboneError) as error:
        export.build_network("resnet18", ExportOptions(weights=asked))
    assert str(error.value) == (
        f"{place} is not the file that torchvision publishes as ResNet18_Weights.IMAGENET1K_V1 "
        f"(its SHA-256 begins with {digest[:8]}): delete it and run the same command again"
    )


def test_timms_weights_that_cannot_be_fetched_are_told(monkeypatch: pytest.MonkeyPatch) -> None:
    """Nothing listens there: said at once, with what to do about it."""
    monkeypatch.setattr(download, "ENDPOINT", "http://127.0.0.1:9")
    with pytest.raises(BackboneError) as error:
        from_timm.build("resnet10t", ExportOptions())
    assert str(error.value) == (
        "the weights of timm/resnet10t.c3_in1k cannot be fetched ([Errno 111] Connection "
        "refused): fetch model.safetensors from http://127.0.0.1:9/timm/resnet10t.c3_in1k on a "
        "machine with a network, and name the file with --weights FILE"
    )


def test_timms_weights_come_from_the_hubs_cache(
    tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    """What has been fetched before needs no network; licence and origin are timm's."""
    model: Any = conditioned(from_timm.untrained("resnet10t"), 64)
    path = tmp_path / "model.safetensors"
    safetensors.save_file({k: v.contiguous() for k, v in model.state_dict().items()}, path)
    monkeypatch.setattr(
        download,
        "try_to_load_from_cache",
        lambda repository, name: (
            str(path) if (repository, name) == ("timm/resnet10t.c3_in1k", path.name) else None
        ),
    )
    network = export.build_network("timm/resnet10t", ExportOptions())
    assert network.name == "timm-resnet10t.c3_in1k"
    assert network.card.license == "apache-2.0"
    digest = read_weights(path).sha256
    assert network.card.weights.endswith(f", resnet10t.c3_in1k, SHA-256 {digest}")
    pixels = torch.randn(2, 3, 64, 64)
    with torch.no_grad():
        assert torch.equal(network.headless(pixels), from_timm.TimmHeadless(model)(pixels))


def test_a_file_of_timm_becomes_a_backbone(tmp_path: Path) -> None:
    """Weights of one's own for one of timm's networks; name and card tell."""
    model: Any = conditioned(from_timm.untrained("resnet10t"), 64)
    path = tmp_path / "ants.safetensors"
    safetensors.save_file({k: v.contiguous() for k, v in model.state_dict().items()}, path)
    # Another tag than the default one: its images are prepared otherwise.
    options = ExportOptions(weights=str(path), size=64, models_dir=tmp_path)
    done = export.export_network(
        export.build_network("timm/resnet10t", options), options, batches=(1, 3)
    )
    assert done.card.name == "timm-resnet10t-ants-64px"
    assert done.card.weights.startswith("ants.safetensors, prepared as timm's resnet10t, SHA-256 ")
    images = photographs(3, 64)
    mean, std = (torch.tensor(v).reshape(1, 3, 1, 1) for v in (done.card.mean, done.card.std))
    with torch.no_grad():
        pixels = (torch.from_numpy(images).permute(0, 3, 1, 2).float() / 255 - mean) / std
        expected = model.forward_features(pixels).mean(dim=(2, 3)).numpy()
    assert compare(expected, load_backbone(done.path).open_session("cpu").run(images)) > 0.99999


def test_a_tag_says_how_weights_of_ones_own_are_prepared(tmp_path: Path) -> None:
    """What the offline message recommends gives the tag's own resize, and its name."""
    path = tmp_path / "model.safetensors"
    model: Any = from_timm.untrained("resnet18")
    safetensors.save_file({k: v.contiguous() for k, v in model.state_dict().items()}, path)
    asked = ExportOptions(weights=str(path))
    default = export.build_network("timm/resnet18.a1_in1k", asked)
    other = export.build_network("timm/resnet18.tv_in1k", asked)
    assert (default.card.resize.resize, default.card.resize.interpolation) == (235, "bicubic")
    assert (other.card.resize.resize, other.card.resize.interpolation) == (256, "bilinear")
    assert (default.name, other.name) == (
        "timm-resnet18.a1_in1k-model",
        "timm-resnet18.tv_in1k-model",
    )


@pytest.mark.slow
def test_real_weights_become_a_backbone(shared: Path, tmp_path: Path) -> None:
    """Trained weights of ResNet-18 from a file: ONNX Runtime gives eager torch's vectors."""
    import torchvision

    path = tmp_path / "resnet18-pqf.safetensors"
    packed = next((shared / "weights").glob("resnet18*.safetensors.xz"))
    with lzma.open(packed) as source, path.open("wb") as file:
        shutil.copyfileobj(source, file)
    done = export.export_backbone("resnet18", ExportOptions(weights=str(path), models_dir=tmp_path))
    assert done.card.name == "resnet18-pqf"
    model = torchvision.models.resnet18()
    model.load_state_dict(safetensors.load_file(path))
    model.fc = torch.nn.Identity()
    transform = torchvision.models.ResNet18_Weights.IMAGENET1K_V1.transforms()
    images = photographs(8, 224)
    pixels = torch.from_numpy(images).permute(0, 3, 1, 2).float() / 255
    mean, std = (torch.tensor(v).reshape(1, 3, 1, 1) for v in (transform.mean, transform.std))
    with torch.no_grad():
        expected = model.eval()((pixels - mean) / std).numpy()
    assert compare(expected, load_backbone(done.path).open_session("cpu").run(images)) > 0.99999
