"""`l2c models`."""

from __future__ import annotations

from typing import TYPE_CHECKING

from l2c.cli import lazy, options
from l2c.cli.messages import FAILED, message_of, say
from l2c.cli.report import Result, print_json, print_rows
from l2c.errors import L2CError

if TYPE_CHECKING:
    from l2c.models import Model


def models(as_json: options.Json = False) -> int:
    """List the models at hand: those that ship with L2C, then those of L2C_MODEL_PATH."""
    results: list[Result] = []
    code = 0
    for path in lazy.models.model_files():
        try:
            results.append(_model_facts(lazy.models.load_model(path)))
        except L2CError as error:
            say("error", message_of(error), error)
            code = FAILED
    if not results:
        say("warning", "no model is at hand; name a file with --model or add its folder to L2C_MODEL_PATH")
    if as_json:
        print_json(results)
        return code
    rows = [("NAME", "ID", "MB", "PARAMETERS", "E+I kMAC/px", "D kMAC/px", "PATH")]
    for facts in results:
        rows.append(
            (
                facts["name"] + (" (default)" if facts["name"] == lazy.models.DEFAULT_MODEL else ""),
                facts["model_id"],
                f"{facts['size_bytes'] / 1e6:.1f}",
                f"{sum(facts['parameters'].values()) / 1e6:.2f} M",
                f"{facts['kmac_per_pixel']['encoder']:.1f}",
                f"{facts['kmac_per_pixel']['decoder']:.1f}",
                facts["path"],
            )
        )
    if results:
        print_rows(rows)
    return code


def _model_facts(model: Model) -> Result:
    """One entry of `l2c models`."""
    encoder_kmac, decoder_kmac = lazy.transforms.transform_costs(model.config.transform)
    config = model.config
    return {
        "name": model.name,
        "model_id": model.model_id.hex(),
        "path": str(model.path),
        "size_bytes": model.path.stat().st_size,
        "parameters": {
            "encoder": sum(p.numel() for p in model.transform.encoder.parameters()),
            "decoder": sum(p.numel() for p in model.transform.decoder.parameters()),
            "probability": model.integer.num_parameters(),
        },
        "kmac_per_pixel": {"encoder": encoder_kmac, "decoder": decoder_kmac},
        "s": config.transform.s,
        "c": config.transform.c,
        "bits": config.bits,
        "qualities": list(config.transform.quality_steps),
        "mean_bpp": {f"{config.shown_quality(round(quality)):g}": bpp for quality, bpp in model.rate_curve},
        "card": model.card,
    }
