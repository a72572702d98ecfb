"""What a drift check has found: each test with its figures, and all of it in one sentence."""

from __future__ import annotations

from dataclasses import asdict, dataclass
from typing import Any

from featpipe.errors import EXIT_DRIFT, EXIT_OK


@dataclass(frozen=True, slots=True)
class Finding:
    """One test.

    Attributes
    ----------
    test : str
        Its name, as ``--skip`` takes it.
    p : float
        The p-value.
    p_adjusted : float
        The same after Holm, for as many tests as were made.
    effect : float
        How far apart the two sides are, in the test's own measure.
    least : float
        The effect from which on it matters.
    alarm : bool
        Whether both are beyond their limits.
    words : str
        What was seen, half a sentence.
    """

    test: str
    p: float
    p_adjusted: float
    effect: float
    least: float
    alarm: bool
    words: str


@dataclass(frozen=True, slots=True)
class DriftReport:
    """What `drift` has found.

    Attributes
    ----------
    head, incoming, compared_with : str
        What was compared.
    images, failed : int
        Images with an answer, and without.
    alpha : float
        How often a check of unchanged images may alarm.
    findings : tuple of Finding
        One a test; none where there are too few images.
    left_out : tuple of (test, why)
    notes : tuple of str
        What a person should know, a sentence each.
    too_few : str
        Where there are too few images to say anything: a sentence that says so.
    """

    head: str
    incoming: str
    compared_with: str
    images: int
    failed: int
    alpha: float
    findings: tuple[Finding, ...]
    left_out: tuple[tuple[str, str], ...]
    notes: tuple[str, ...]
    too_few: str = ""

    @property
    def drifted(self) -> bool | None:
        """Whether any test alarms; None where there are too few images, or no test was made."""
        if not self.findings:
            return None
        return any(finding.alarm for finding in self.findings)

    @property
    def exit_code(self) -> int:
        """9 where it has drifted, 0 otherwise."""
        return EXIT_DRIFT if self.drifted else EXIT_OK

    def __str__(self) -> str:
        many = f"{self.images:,} images of {self.incoming}"
        if self.too_few:
            return self.too_few
        if not self.findings:
            return f"Nothing could be compared for the {many}"
        if not self.drifted:
            return f"No drift found in the {many}, beside {self.compared_with}"
        seen = "; ".join(finding.words for finding in self.findings if finding.alarm)
        return f"Drift: the {many} are not like {self.compared_with}: {seen}"

    def table(self) -> str:
        """Return the tests laid out for a person, and the sentence."""
        lines = [
            f"{'test':<13}{'effect':>8}{'matters at':>12}{'p, adjusted':>13}",
            *(
                f"{f.test:<13}{f.effect:>8.3f}{f.least:>12.2f}{f.p_adjusted:>13.2g}"
                f"{'   drift' if f.alarm else ''}"
                for f in self.findings
            ),
            *(f"{name:<13}left out: {why}" for name, why in self.left_out),
            "",
        ]
        return "\n".join([*(lines if self.findings or self.left_out else []), f"{self}."])

    def to_json(self) -> dict[str, Any]:
        """Return plain values, as ``featpipe drift --json`` prints them."""
        return {
            "drift": self.drifted,
            "words": str(self),
            "head": self.head,
            "incoming": self.incoming,
            "compared_with": self.compared_with,
            "images": self.images,
            "failed": self.failed,
            "alpha": self.alpha,
            "tests": [asdict(finding) for finding in self.findings],
            "left_out": dict(self.left_out),
            "notes": list(self.notes),
        }
