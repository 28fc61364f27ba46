"""Serve the page of `lora-moe-hgd app` as a Hugging Face Space."""

import os

from lora_moe_hgd.app.server import AppOptions, serve

# Shipped name or Hub id of the checkpoint. The variable `CHECKPOINT` of the Space overrides it.
CHECKPOINT = "glioma"

# The process that segments imports this file again, and must not start a second server.
if __name__ == "__main__":
    serve(AppOptions(os.environ.get("CHECKPOINT", CHECKPOINT), max_upload_mb=500), host="0.0.0.0", port=7860)
