from made_up import TUNED, collect, plan, record_of

from randlora_core.experiment.reports.report import make_report


def test_the_notes_say_what_a_reader_must_know(results):
    notes = list(make_report(results).notes)
    text = " ".join(notes)
    assert "* Learning rate not tuned for these settings: RandLoRA-10 on sum." in notes
    assert "from 7 values" in text and notes[0].startswith("4 of 20 runs are not there")
    assert "VmHWM" in text and "some CPU, 2 threads" in text and "a" * 12 in text and "uncommitted" not in text
    assert "sum is made up" not in text and "Backbone tiny; training: 4 steps of 16 in fp32;" in text


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
