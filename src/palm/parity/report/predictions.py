"""The report's section on predictions: what both sides expect, beside each other, as text."""

from __future__ import annotations

from collections.abc import Mapping, Sequence
from typing import Any

from palm.parity.report.axes import swatch
from palm.parity.report.markup import number, tag, text, visible

_QUIET = (
    "The places at which the two predict most differently: the text so far, what came next, and what each "
    "side held likeliest. Of bytes, ⏎ is a newline, ␣ a space, \\xff the byte ff."
)
_NONE = "There is no place at which both sides' logits are here and finite."


def predictions_section(report: Mapping[str, Any]) -> str:
    """One card for each place, from what `Prediction.to_dict()` gave."""
    cards = [_card(prediction, report["sides"]) for prediction in report["predictions"]]
    return tag(
        "section",
        tag("h2", "Predictions side by side"),
        tag("p", text(_QUIET if cards else _NONE), class_="quiet"),
        tag("ol", *cards, class_="cards") if cards else "",
        class_="predictions",
    )


def _card(prediction: Mapping[str, Any], sides: Sequence[Mapping[str, Any]]) -> str:
    differs = prediction["a"][0][0] != prediction["b"][0][0]
    place = f"sequence {prediction['sequence']}, position {prediction['position']}, KL "
    return tag(
        "li",
        tag(
            "p",
            tag("span", visible(prediction["context"]), class_="context"),
            tag("b", _token(prediction["target"]), class_="target", title="what came"),
            class_="text",
        ),
        tag(
            "div",
            *(_likeliest(prediction[key], key, side["label"]) for key, side in zip("ab", sides, strict=True)),
            class_="beside",
        ),
        tag(
            "p",
            text(place) + number(float(prediction["divergence"]), " nats"),
            tag("strong", text(" ≠ likeliest differs")) if differs else "",
            class_="quiet",
        ),
    )


def _likeliest(tokens: Sequence[tuple[str, float]], key: str, label: str) -> str:
    rows = [
        tag(
            "li",
            tag("span", _token(token), class_="token"),
            tag("span", class_="share", style=f"width:{100 * probability:.1f}%", aria_hidden="true"),
            tag("span", text(f"{probability:.1%}"), title=repr(probability), class_="number"),
        )
        for token, probability in tokens
    ]
    return tag("div", tag("p", swatch(key) + text(label)), tag("ol", *rows, class_=f"likeliest side-{key}"))


def _token(token: str) -> str:
    """A token that is spaces alone would not be seen."""
    return tag("i", "␣" * len(token), class_="ctl") if token and not token.strip(" ") else visible(token)
