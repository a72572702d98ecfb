"""A real browser without a screen: what a page becomes in it, and what it says on its console."""

from __future__ import annotations

import json
import re
import shutil
import subprocess
from pathlib import Path
from typing import Any
from urllib.parse import unquote

import pytest

BROWSER = shutil.which("chromium") or shutil.which("chromium-browser")
needs_browser = pytest.mark.skipif(BROWSER is None, reason="there is no chromium here")

_LEAST_WIDTH = 500
"""No window of this browser is narrower; a frame in it may be."""
_ANSWER = re.compile(r'data-answer="([^"]*)"')


def ask(page: Path, script: str, *, width: int = 1280, dark: bool = False) -> dict[str, Any]:
    """Open a page, run ``script`` (it fills the object ``out``), return ``out``.

    ``out`` has the console's lines under ``console``.
    """
    assert BROWSER is not None
    probe = page.with_name(f"{page.stem}-probe.html")
    asked = (
        "<script>window.addEventListener('load', () => { const out = {};"
        f"{script}; const answer = encodeURIComponent(JSON.stringify(out));"
        " if (parent === window) document.body.dataset.answer = answer;"
        " else parent.postMessage(answer, '*') });</script></body>"
    )
    text = page.read_text(encoding="utf-8")
    probe.write_text(text.replace("</body>", asked), encoding="utf-8")
    if width < _LEAST_WIDTH:
        probe = _framed(probe, width)
    done = subprocess.run(
        [
            BROWSER,
            "--headless=new",
            "--no-sandbox",
            "--disable-gpu",
            "--hide-scrollbars",
            f"--window-size={max(width, _LEAST_WIDTH)},2000",
            f"--blink-settings=preferredColorScheme={0 if dark else 1}",
            "--enable-logging=stderr",
            "--virtual-time-budget=5000",
            "--dump-dom",
            probe.as_uri(),
        ],
        capture_output=True,
        text=True,
        timeout=300,
        check=True,
    )
    found = _ANSWER.search(done.stdout)
    assert found is not None, done.stderr[-2000:]
    answer: dict[str, Any] = json.loads(unquote(found.group(1)))
    return {**answer, "console": [line for line in done.stderr.splitlines() if "CONSOLE" in line]}


def _framed(page: Path, width: int) -> Path:
    """Write a page that holds another in a frame, and takes its answer."""
    frame = page.with_name(f"{page.stem}-frame.html")
    frame.write_text(
        "<!doctype html><script>addEventListener('message', event => {"
        " document.body.dataset.answer = event.data })</script>"
        f'<body><iframe src="{page.as_uri()}" width="{width}" height="2000" frameborder="0">'
        "</iframe></body>",
        encoding="utf-8",
    )
    return frame
