"""One contender's process: set up, say so, then do a list of images for each line of input.

Every contender is a function of its options that returns a function of paths; what it
imports is imported inside, as some of it exists in the peers' environment alone.
"""

from __future__ import annotations

import contextlib
import json
import os
import sys
import tempfile
import time
from collections.abc import Callable
from concurrent.futures import ThreadPoolExecutor
from pathlib import Path
from typing import Any

sys.path.insert(0, str(Path(__file__).resolve().parent.parent))
Run = Callable[[list[str]], int | None]
"""Does the images once; returns how many, where it is not as many as there are paths."""

BATCH = 32
CORES = len(os.sched_getaffinity(0)) if hasattr(os, "sched_getaffinity") else os.cpu_count() or 1


def featpipe_embed(model: str, models_dir: str | None = None, **options: Any) -> Run:
    """Measure `featpipe.embed` itself, into a new store each time."""
    import featpipe
    from featpipe.backbones import load_backbone

    backbone = load_backbone(model, models_dir)

    def run(paths: list[str]) -> None:
        with tempfile.TemporaryDirectory() as folder:
            store = featpipe.embed(paths, backbone, output=Path(folder) / "store", **options)
            assert len(store) == len(set(paths))

    return run


def featpipe_score(model: str, folder: str, **options: Any) -> Run:
    """Measure `featpipe.score` into a CSV file, with a head learnt on a folder of classes."""
    import featpipe
    from featpipe.backbones import load_backbone

    backbone = load_backbone(model)
    with tempfile.TemporaryDirectory() as scratch:
        store = featpipe.embed(folder, backbone, output=Path(scratch) / "store", **options)
        head = featpipe.fit(store, "logreg", tune=False)

    def run(paths: list[str]) -> None:
        with tempfile.TemporaryDirectory() as scratch:
            output = Path(scratch) / "scores.csv"
            featpipe.score(paths, head, output=output, model=backbone, **options)

    return run


def naive(model: str) -> Run:
    """Decode in full, resize, crop, in batches of 32, on a session with default options."""
    import numpy as np
    import onnxruntime

    from featpipe.backbones import load_backbone

    backbone = load_backbone(model)
    rule = backbone.card.resize
    session = onnxruntime.InferenceSession(backbone.path, providers=["CPUExecutionProvider"])

    def square(path: str) -> Any:
        image = whole_image(path, rule)
        left, top = (image.width - rule.crop) // 2, (image.height - rule.crop) // 2
        return np.asarray(image.crop((left, top, left + rule.crop, top + rule.crop)))

    def run(paths: list[str]) -> None:
        for start in range(0, len(paths), BATCH):
            batch = np.stack([square(path) for path in paths[start : start + BATCH]])
            session.run(["embedding"], {"images": batch})

    return run


def whole_image(path: str, rule: Any) -> Any:
    """Decode in full and resize all of the image, with Pillow alone."""
    from PIL import Image

    from featpipe.images.geometry import resized_size
    from featpipe.images.resize import FILTERS

    with Image.open(path) as opened:
        image = opened.convert("RGB")
    return image.resize(resized_size(*image.size, rule), FILTERS[rule.interpolation])


def model_only(
    model: str, device: str = "cpu", precision: str = "auto", batch_size: int | None = None
) -> Run:
    """Run the model on batches that are ready, on all cores: one half of the limit."""
    import numpy as np

    from featpipe.backbones import load_backbone

    backbone = load_backbone(model)
    session = backbone.open_session(device, precision)
    side, size = backbone.card.input_size, batch_size or session.batch_size
    batch = np.random.default_rng(0).integers(0, 256, (size, side, side, 3), dtype=np.uint8)

    def run(paths: list[str]) -> int:
        # As many batches for every core, and enough of them.
        batches = CORES * max(4, len(paths) // size // CORES)
        with ThreadPoolExecutor(CORES) as pool:
            list(pool.map(lambda _: session.run(batch), range(batches)))
        return batches * size

    return run


def decode_only(model: str) -> Run:
    """Read and decode as featpipe does, on all cores: the other half of the limit."""
    from featpipe.backbones import load_backbone
    from featpipe.images import decode_image

    rule = load_backbone(model).card.resize

    def run(paths: list[str]) -> None:
        with ThreadPoolExecutor(CORES) as pool:
            list(pool.map(lambda path: decode_image(Path(path).read_bytes(), rule), paths))

    return run


def read_and_hash() -> Run:
    """Read files and compute the keys of their contents, on all cores."""
    from featpipe._files import content_key

    def run(paths: list[str]) -> None:
        with ThreadPoolExecutor(CORES) as pool:
            list(pool.map(lambda path: content_key(Path(path).read_bytes()), paths))

    return run


def reference_decode(model: str) -> Run:
    """Decode in full and resize all of the image with Pillow, on all cores."""
    from featpipe.backbones import load_backbone

    rule = load_backbone(model).card.resize

    def run(paths: list[str]) -> None:
        with ThreadPoolExecutor(CORES) as pool:
            list(pool.map(lambda path: whole_image(path, rule), paths))

    return run


def torch_usual(network: str, resize: int, crop: int) -> Run:
    """Do what tutorials do: Dataset, DataLoader with workers, eager model, no gradients."""
    import torch

    model = _network(network)
    loader = _loader(resize, crop)

    def run(paths: list[str]) -> None:
        with torch.no_grad():
            for batch in loader(paths):
                model(batch)

    return run


def torch_model(
    network: str, crop: int, batch_size: int, device: str, compiled: bool, half: bool
) -> Run:
    """Run torch's own network on batches that lie on the device already."""
    import torch

    model: Any = _network(network).to(device, memory_format=torch.channels_last)
    batch = torch.randn(batch_size, 3, crop, crop, device=device)
    batch = batch.to(memory_format=torch.channels_last)
    if half:
        model, batch = model.half(), batch.half()
    if compiled:
        model = torch.compile(model, mode="max-autotune")

    def run(paths: list[str]) -> int:
        batches = max(4, len(paths) // batch_size)
        with torch.inference_mode():
            for _ in range(batches):
                vectors = model(batch)
            vectors.cpu()  # waits for all that was asked for
        return batches * batch_size

    return run


def torch_expert(network: str, resize: int, crop: int) -> Run:
    """Add what an expert knows: channels last, compiled, bf16 where the processor has it."""
    import torch

    half = torch.cpu._is_avx512_bf16_supported() or torch.cpu._is_amx_tile_supported()
    model = torch.compile(_network(network).to(memory_format=torch.channels_last))
    loader = _loader(resize, crop)

    def run(paths: list[str]) -> None:
        with torch.inference_mode(), torch.autocast("cpu", torch.bfloat16, enabled=half):
            for batch in loader(paths):
                model(batch.to(memory_format=torch.channels_last))

    return run


def _network(name: str) -> Any:
    """Return an untrained network without its classifier: the weights' values cost no time."""
    import torch

    if name.startswith("timm/"):
        import timm

        return timm.create_model(name.removeprefix("timm/"), num_classes=0).eval()
    import torchvision

    model = getattr(torchvision.models, name)(weights=None)
    model.fc = torch.nn.Identity()
    return model.eval()


def _loader(resize: int, crop: int) -> Callable[[list[str]], Any]:
    from PIL import Image
    from torch.utils.data import DataLoader, Dataset
    from torchvision import transforms

    steps = transforms.Compose(
        [
            transforms.Resize(resize, interpolation=transforms.InterpolationMode.BICUBIC),
            transforms.CenterCrop(crop),
            transforms.ToTensor(),
            transforms.Normalize([0.485, 0.456, 0.406], [0.229, 0.224, 0.225]),
        ]
    )

    class Photos(Dataset):  # type: ignore[type-arg]
        def __init__(self, paths: list[str]) -> None:
            self.paths = paths

        def __len__(self) -> int:
            return len(self.paths)

        def __getitem__(self, index: int) -> Any:
            with Image.open(self.paths[index]) as image:
                return steps(image.convert("RGB"))

    # Threads would be copied into the workers in the middle of what they do.
    return lambda paths: DataLoader(
        Photos(paths), batch_size=BATCH, num_workers=CORES, multiprocessing_context="fork"
    )


def fastembed_folder(folder: str) -> Run:
    """Run fastembed on the same network: its ONNX file, from the normalised pixels on."""
    from fastembed import ImageEmbedding

    model = ImageEmbedding("Qdrant/resnet50-onnx", specific_model_path=folder)

    def run(paths: list[str]) -> None:
        assert len(list(model.embed(paths, batch_size=BATCH))) == len(paths)

    return run


def peak_memory() -> int:
    """Return the most bytes that this process has held; 0 where the system does not tell."""
    try:
        # `getrusage` would tell the largest of this process and the one that started it.
        lines = Path("/proc/self/status").read_text(encoding="utf-8").splitlines()
    except OSError:
        return 0
    return next(int(line.split()[1]) << 10 for line in lines if line.startswith("VmHWM"))


CONTENDERS: dict[str, Callable[..., Run]] = {
    "featpipe": featpipe_embed,
    "score": featpipe_score,
    "naive": naive,
    "model": model_only,
    "decode": decode_only,
    "hash": read_and_hash,
    "reference": reference_decode,
    "torch": torch_usual,
    "expert": torch_expert,
    "torch model": torch_model,
    "fastembed": fastembed_folder,
}


def main() -> None:
    """Answer on the stdout that there was; what libraries print goes to stderr."""
    answers = os.fdopen(os.dup(1), "w", encoding="utf-8")
    os.dup2(2, 1)
    run = CONTENDERS[sys.argv[1]](**json.loads(sys.argv[2]))
    print(json.dumps({"ready": True}), file=answers, flush=True)
    with contextlib.suppress(KeyboardInterrupt):
        for line in sys.stdin:
            paths = json.loads(line)
            begun = time.perf_counter()
            images = run(paths) or len(paths)
            seconds = time.perf_counter() - begun
            print(
                json.dumps({"rate": images / seconds, "memory": peak_memory()}),
                file=answers,
                flush=True,
            )


if __name__ == "__main__":
    main()
