"""Make the embedded weights of a finished pretraining run: python tools/embed_weights.py runs/pretrain_glyphs."""

import hashlib
import json
import sys

import tlearn
from tlearn.backbones import build_backbone, save_weights_npz
from tlearn.backbones.weights import EMBEDDED
from tlearn.quiet import import_tensorflow


def main(path: str) -> None:
    """Write the backbone's weights, and beside them what they are and how they were made."""
    import_tensorflow()
    run = tlearn.open_run(path)
    settings = run.config.backbone
    backbone = build_backbone(
        settings.name, image_size=settings.image_size, alpha=settings.alpha, weights=str(run.model_file)
    )
    EMBEDDED.parent.mkdir(exist_ok=True)
    save_weights_npz(EMBEDDED, backbone.layers)
    facts = {
        "sha256": hashlib.sha256(EMBEDDED.read_bytes()).hexdigest(),
        "architecture": settings.name,
        "alpha": settings.alpha,
        "image_size": settings.image_size,
        "commands": [
            "python -m tlearn.train experiment=pretrain_glyphs run_dir=runs/pretrain_glyphs",
            "python tools/embed_weights.py runs/pretrain_glyphs",
        ],
        "images_seen": run.summary["epochs"] * run.plan["train_images"],
        "val_accuracy": run.summary["val_accuracy"],
        "packages": json.loads(run.environment_file.read_text())["packages"],
        "licence": "Apache-2.0",
    }
    EMBEDDED.with_suffix(".json").write_text(json.dumps(facts, indent=1) + "\n")
    print(f"{EMBEDDED}: {EMBEDDED.stat().st_size:,} bytes, sha256 {facts['sha256']}")


if __name__ == "__main__":
    main(*sys.argv[1:])
