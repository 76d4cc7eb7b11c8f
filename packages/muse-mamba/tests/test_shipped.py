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
    """The three tables of docs/tokenizer.md."""
    page, found = (DOCS / "tokenizer.md").read_text(), json.loads((DOCS / "results/tokenizer/stages.json").read_text())
    plan = [[r["size"], r["micro_batch"], r["accumulation"]] for r in found["seed"]["pace"]]
    assert plan == [stage[:3] for stage in found["run"]["config"]["stages"]] == [[*s[:3]] for s in seed().stages]
    for r in found["seed"]["pace"]:
        batch = f"{r['micro_batch']} x {r['accumulation']}"
        assert f"| {r['size']} | {batch} | {r['steps_per_s']:.1f} | {r['peak_bytes'] / 2**30:.1f} |" in page
    for r in found["run"]["validation"]:
        assert f"| {r['size']} | {r['step']} | {r['psnr']:.1f} | {r['usage']:.0%} | {r['perplexity']:.0f} |" in page
    for r in found["measured"]["3"]:
        use = f"{r['code_usage']:.0%} | {r['code_perplexity']:.0f}"
        assert f"| {r['size']} | {r['psnr']:.1f} | {r['ssim']:.2f} | {use} | {r['FD-EffNetLite0']:.0f} |" in page


def test_first_size_at_full_width_is_the_json():
    page = " ".join((DOCS / "tokenizer.md").read_text().split())
    found = json.loads((DOCS / "results/tokenizer/seed-64.json").read_text())
    pace, seen, (small, large) = found["steps_per_s"], found["validation"][-1], found["measured"]["raw"]
    assert f"{pace['least']:.0f} to {pace['most']:.0f} steps a second (half of them below {pace['median']:.1f})" in page
    assert (
        f"after {seen['step']} steps at {seen['size']} px. There the averaged weights have {seen['psnr']:.1f} dB"
        in page
    )
    assert f"({seen['usage']:.0%} of the codes, perplexity {seen['perplexity']:.0f})" in page
    for row, said in ((small, "SSIM {:.2f}, FD-EffNetLite0 {:.0f}"), (large, "({:.2f}, {:.0f})")):
        assert said.format(row["ssim"], row["FD-EffNetLite0"]) in page
        assert f"{row['psnr']:.1f}" in page
    assert small["n"] == large["n"] == 36
