from made_up import TUNED, collect, plan, record_of

from randlora_core.experiment.reports.report import make_report, report_markdown


def test_the_notes_say_what_a_reader_must_know(results):
    notes = list(make_report(results).notes)
    text = " ".join(notes)
    assert "* Learning rate not tuned for these settings: RandLoRA-10 on sum." in notes
    assert "from 7 values" in text and notes[0].startswith("4 of 20 runs are not there")
    assert "VmHWM" in text and "some CPU, 2 threads" in text and "a" * 12 in text and "uncommitted" not in text
    assert "sum is made up" not in text and "Backbone tiny; training: 4 steps of 16 in fp32;" in text


def test_only_comparisons_that_were_made_are_counted(results):
    """VeRA-256 has no run on difference, and zero-shot is one run: neither can be compared there."""
    report = make_report(results, [("RandLoRA-10", "LoRA-4"), ("VeRA-256", "LoRA-4")], "LoRA-4")
    made = [len(pair.points) for pair in report.pairs if pair.p_value is not None]
    single, averages = made.count(1), len(made) - made.count(1)
    assert 0 < len(made) < len(report.pairs)
    counted = f"single points: {single}" + (f", averages: {averages}" if averages else "")
    pairs = next(line for line in report_markdown(report).splitlines() if line.startswith("Differences in points"))
    assert pairs.endswith(f"({counted}):")


def test_a_probe_whose_solver_was_stopped_is_told(tiny):
    entries = [plan(tiny, "LoRA-4", "sum", seed) for seed in (1, 2)]
    records = [
        {**record_of(entry), "solution": {"strength": 1.0, "converged": converged, "grid": []}}
        for entry, converged in zip(entries, (True, False), strict=True)
    ]
    told = [note for note in make_report(collect(entries, records)).notes if "converged" in note]
    assert told == [f"Not converged: LoRA-4, run {entries[1].run_id}."]


def test_the_notes_name_the_settings_that_a_rate_was_tuned_for(tiny):
    planned = plan(tiny, "LoRA-4", "sum", 1)
    rate = {**TUNED, "source": "tuned_otherwise", "tuned_for": ["rule=difference", "training.steps=9"]}
    notes = make_report(collect([planned], [record_of(planned, learning_rate=rate)])).notes
    assert "* Learning rate tuned for rule=difference training.steps=9: LoRA-4." in notes


def test_the_notes_say_which_point_was_trained_how_long(tiny):
    planned = [plan(tiny, "LoRA-4", "sum", 1), plan(tiny, "LoRA-4", "difference", 1, "training.steps=9")]
    notes = make_report(collect(planned, [record_of(entry) for entry in planned])).notes
    (note,) = (note for note in notes if note.startswith("Backbone"))
    assert "training: sum 4 steps of 16 in fp32; difference 9 steps of 16 in fp32;" in note


def test_remarks_on_the_data_and_mixed_machines_are_noted(tiny):
    one, two = plan(tiny, "LoRA-4", "sum", 1), plan(tiny, "LoRA-4", "sum", 2)
    remarks = {"remarks": ["sum is a subset.", "sum: 2 classes are short."]}
    elsewhere = {"commit": None, "dirty": True, "hardware": {"cpu": "B", "gpu": "G", "threads": 1}}
    records = [record_of(one, data=remarks), record_of(two, data=remarks, provenance=elsewhere)]
    notes = list(make_report(collect([one, two], records)).notes)
    text = " ".join(notes)
    assert notes.count("sum is a subset.") == 1 and notes.count("sum: 2 classes are short.") == 1
    assert "not comparable" in text and "G, B, 1 thread" in text and "1 threads" not in text
    assert "unknown with uncommitted changes" in text
