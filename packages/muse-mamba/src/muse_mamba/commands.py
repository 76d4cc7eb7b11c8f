"""What the smaller verbs do once their options are read: encode and info."""

from __future__ import annotations

import json

from .arguments import EncodeOptions, InfoOptions


def encode_command(options: EncodeOptions) -> int:
    """Run `muse-mamba encode`."""
    from .packed import pack

    assert options.out is not None
    summary = pack(
        options.out,
        data=options.data,
        size=options.size,
        root=options.root,
        encoder=options.text_encoder,
        length=options.text_length,
        tokenizer=options.tokenizer,
        perceptual=not options.no_perceptual,
    )
    if options.json:
        print(json.dumps(summary, indent=2))
        return 0
    print(f"{summary['pictures']} pictures, {summary['captions']} captions, {summary['bytes'] / 1e6:.1f} MB")
    for what in ("splits", "packages"):
        print("  " + ", ".join(f"{count} {name}" for name, count in summary[what].items()))
    return 0


def info_command(options: InfoOptions) -> int:
    """Run `muse-mamba info`."""
    from .info import model_info

    result = model_info(options.preset, options.method)
    if options.json:
        print(json.dumps(result, indent=2))
        return 0
    print(f"{result['preset']}" + (f" {result['method']}" if "method" in result else ""))
    print(f"  parameters  {result['parameters']:>16,}")
    for name, count in result["parts"].items():
        print(f"    {name:<18}{count:>14,}")
    print(f"  weights     {result['weights_bytes']:>16,}   bytes in float32, with buffers")
    print(f"  macs        {result['macs']:>16,}   multiply-adds of matrix products, one pass, {result['input']}")
    if "scan_ops" in result:
        print(f"  scan_ops    {result['scan_ops']:>16,}   of the scans")
    return 0
