"""The weights that ship: small enough, loadable, and their pages say what the committed results say."""

import json
from pathlib import Path

import torch
from muse_mamba.benchmark import crossovers
from muse_mamba.config import METHODS, model_preset
from muse_mamba.judge import Judge
from muse_mamba.lengthplot import table as length_table
from muse_mamba.model import TokenModel
from muse_mamba.studyreport import table
from muse_mamba.tokenizer import VQTokenizer
from muse_mamba.tokenizer.recipes import seed
from muse_mamba.weights import WEIGHTS, find_judge, shipped_model, shipped_tokenizer

LARGE = ("concat", "attn-xz")
DOCS = Path(__file__).parent.parent / "docs"


def test_shipped_weights_belong_together_and_are_small():
    folders = shipped_tokenizer(), shipped_model()
    assert sum((folder / WEIGHTS).stat().st_size for folder in folders) <= 8_000_000
    tokenizer, model = VQTokenizer.from_pretrained(folders[0]), TokenModel.from_pretrained(folders[1])
    assert tokenizer.config.codes == model.config.vocab
    ids = torch.full((1, model.config.length), model.config.vocab)
    with torch.no_grad():
        assert torch.isfinite(model(ids, None).logits).all()
    judge = find_judge(None)
    assert judge is not None
    assert Judge.from_pretrained(judge).config.text_dim == model.config.text_dim
    assert all((folder / "README.md").is_file() for folder in (*folders, judge))


def test_model_card_is_the_json():
    card = (DOCS / "model-card.md").read_text()
    held = json.loads((DOCS / "results/tokenizer/held-out.json").read_text())["rows"][0]
    ship = json.loads((DOCS / "results/ship/held-out.json").read_text())
    sizes = json.loads((DOCS / "results/tokenizer/sizes.json").read_text())["rows"]
    losses, found = ship["loss_over_ln_V"], ship["alignment"]
    shares = ", ".join(f"{losses[f'loss_at_{share}']:.3f}" for share in ("0.25", "0.5", "0.75", "1"))
    for text in (f"| {held['psnr']:.2f} dB |", f"perplexity {held['code_perplexity']:.0f}", f"| {shares} |"):
        assert text in card
    assert f"{losses['caption_gap']:.3f} nats a token" in card
    assert f"the real drawings {ship['alignment_real']['R@5']:.2f} | {found['R@5']:.2f} |" in card
    assert f"(0.5) {'is met' if found['R@5'] >= 5 * found['chance_R@5'] else 'is not met'}" in card
    assert [row["size"] for row in sizes] == [64, 128, 256, 512, 1024]
    found = "{:.1f} dB at 64 px, {:.1f} at 128, {:.1f} at 256, {:.1f} at 512, {:.1f} at 1024"
    assert found.format(*(row["psnr"] for row in sizes)) in " ".join(card.split())


def test_pages_give_the_sizes_of_presets_and_files():
    methods, drawing = ((DOCS / f"{page}.md").read_text() for page in ("methods", "drawing"))
    for name, method in (("muse-24x2048", None), ("muse-12x1024", None), *(("mamba-12x1024", m) for m in LARGE)):
        with torch.device("meta"):
            count = sum(p.numel() for p in TokenModel(model_preset(name, method)).parameters())
        assert f"{count:,}" in methods
    files = {row["part"]: row["bytes"] for row in json.loads((DOCS / "results/export.json").read_text())["rows"]}
    sizes = [f"{files[part] / 1e6:.1f}" for part in ("model", "decoder", "encoder")]
    assert f"{sizes[0]}, {sizes[1]} and {sizes[2]} MB (model, decoder, encoder)" in drawing


def test_study_page_is_the_json():
    """`muse-mamba study --report_only` would write the table of docs/study.md."""
    rows = json.loads((DOCS / "results/study/study.json").read_text())["rows"]
    assert {(row["method"], row["seed"], row["steps"]) for row in rows} == {
        (m, s, 800) for m in METHODS for s in (0, 1)
    }
    assert table(rows) in (DOCS / "study.md").read_text()


def test_times_against_length_are_the_json():
    """The table of docs/study.md, and what the page says about the crossover and the norms."""
    page = " ".join((DOCS / "study.md").read_text().split())
    files = {file.stem: json.loads(file.read_text()) for file in (DOCS / "results/lengths").iterdir()}
    assert set(files) == {"graph", "plain", "torch-norms"}
    recorded, plain, before = files["graph"], files["plain"], files["torch-norms"]
    assert " ".join(length_table(recorded).split()) in page
    assert {row["method"] for row in recorded["rows"]} == set(METHODS)
    for found in files.values():
        assert found["crossover"] == crossovers(found["rows"])
    never = recorded["crossover"].pop("layer-critic")
    assert set(never.values()) == {None}
    for found in (recorded, before):
        assert {length for at in found["crossover"].values() for length in at.values()} == {64}
    assert plain["crossover"] == {"mamba-xattn": {"training_step_ms": 1024, "decoding_ms": None}}
    now, then = ({(r["method"], r["length"]): r for r in found["rows"]} for found in (recorded, before))
    share = lambda name, at, key: f"{now[name, at][key] / now['transformer', at][key]:.0%}"  # noqa: E731
    for name in ("mamba-xattn", "mamba2-xattn"):
        for key in ("training_step_ms", "decoding_ms"):
            assert share(name, 64, key) in page
            assert share(name, 4096, key) in page
    for name in ("transformer", "mamba-xattn"):
        for key in ("training_step_ms", "decoding_ms"):
            a, b = then[name, 4096][key], now[name, 4096][key]
            assert f"{a:.1f} and {b:.1f}" in page or f"{a:.1f} ms there and {b:.1f}" in page


def test_growing_sizes_are_the_json():
    """The two tables of docs/tokenizer.md, what it says of them, and the command."""
    page, found = (DOCS / "tokenizer.md").read_text(), json.loads((DOCS / "results/tokenizer/stages.json").read_text())
    pace, seen, measured = found["pace"], found["validation"], found["measured"]
    stages = [[r["size"], r["micro_batch"], r["accumulation"], r["steps"]] for r in pace]
    assert [stage[:3] for stage in stages] == [[*s[:3]] for s in seed().stages]
    assert found["config"]["stages"] == stages
    assert f'--stages "{json.dumps(stages).replace(" ", "")}" --steps {seen[-1]["step"]}' in page
    assert f"{seen[-1]['step']} steps in all" in page
    for r, v in zip(pace, seen, strict=True):
        rate = f"{r['micro_batch']} x {r['accumulation']} | {r['steps']} | {r['steps_per_s']:.1f}"
        codes = f"{v['psnr']:.1f} | {v['usage']:.0%} | {v['perplexity']:.0f}"
        assert f"| {r['size']} | {rate} | {r['peak_bytes'] / 2**30:.1f} | {codes} |" in page
    for rows in zip(*(measured[str(stage)] for stage in range(4)), strict=True):
        cells = [
            f"{r['psnr']:.1f}, {r['ssim']:.2f}, {r['FD-EffNetLite0']:.0f}, {r['code_usage']:.0%}"
            for r in rows
            if r["n"] == 16
        ]
        assert f"| {rows[0]['size']} px | {' | '.join(cells)} |" in page
    page = " ".join(page.split())
    first, second, last, raw = ([r["psnr"] for r in measured[name]] for name in ("0", "1", "3", "raw"))
    assert f"have {first[4]:.1f} dB; after all four {last[4]:.1f}" in page
    assert f"{second[0]:.1f} dB at 64 px after 128 px, {last[0]:.1f} at the end" in page
    assert f"at 256 px {last[2]:.1f} dB, the raw ones {raw[1]:.1f}; at 64 px {last[0]:.1f} and {raw[0]:.1f}" in page
