# Copyright 2026 The DiffuseSeg for Diffusers authors. Licensed under the Apache License, Version 2.0.

import shutil
import signal
import subprocess
import sys
import threading
import time
from pathlib import Path

import numpy as np
import pytest
import tifffile
import torch
from PIL import Image

from diffuseseg_diffusers import UserError, evaluate_segmentation
from diffuseseg_diffusers.labeling.journal import UNLABELED
from diffuseseg_diffusers.labeling.session import LabelSession

from ..conftest import QUICK, make_pipeline
from .conftest import NAMES, label, true_runs


def test_masks_of_all_pictures_follow_the_strokes(session, pictures):
    masks = pictures[1]
    assert session.predict("0.png") is None and session.small_masks(["0.png"]) == {}
    session.draw("0.png", true_runs(masks["0.png"], 0))
    assert session.predict("0.png") is None  # one class tells nothing
    label(session, masks, ["0.png", "1.png", "2.png"])
    found = {name: session.predict(name) for name in session.pictures}
    truth, given = (
        np.concatenate([m[n].reshape(-1) for n in ("3.png", "4.png", "5.png")])
        for m in (masks, {n: p.mask for n, p in found.items()})
    )
    recalls = [(given[truth == c] == c).mean() for c in range(3)]
    assert np.mean(recalls) > 0.6 and min(recalls) > 0.4  # a third by chance
    assert all(p.mask.shape == masks[n].shape == p.uncertainty.shape for n, p in found.items())
    assert all(p.mask.dtype == np.uint8 and p.revision == session.revision for p in found.values())
    small = session.small_masks(list(masks))
    assert (small["4.png"] == found["4.png"].mask).mean() > 0.95  # of 16 x 16 pixels, as small masks are here
    assert small["0.png"].shape == (16, 16)


def test_a_mask_is_the_plain_one_pixel_by_pixel(session, pictures):
    """Against features read at each pixel, and the head's own prediction there."""
    import torch

    from diffuseseg_diffusers.labeling.features import sample_pixels

    label(session, pictures[1], ["4.png", "5.png"])
    found = session.predict("4.png")  # 16 x 16, as the features are: nothing is interpolated
    pixels = torch.from_numpy(np.argwhere(np.ones((16, 16), bool)))
    mean, uncertainty = session.fit_live().predict(sample_pixels(session.grid("4.png"), pixels, (16, 16)))
    sure = mean.topk(2, 1).values.diff(dim=1)[:, 0].abs() > 1e-3
    expected = torch.tensor(session.head.classes)[mean.argmax(1)]
    assert (torch.from_numpy(found.mask.reshape(-1)).long() == expected)[sure].all()
    assert np.allclose(found.uncertainty.reshape(-1), uncertainty.numpy(), atol=1e-2)


def test_features_have_a_progress_bar_or_tell_how_far_they_are(open_session, capsys):
    session, told = open_session(), []
    session.extract(lambda done, total: told.append(done))
    assert told == [0, 1, 2, 3, 4, 5, 6] and "Extracting" not in capsys.readouterr().err
    open_session().extract()
    assert "Extracting features: 100%" in capsys.readouterr().err


def test_undo_takes_the_mask_back(session, pictures):
    label(session, pictures[1], ["0.png", "1.png"])
    before = session.predict("2.png")
    wrong = session.draw("2.png", true_runs(pictures[1]["2.png"], 0, length=20)[:1])
    session.undo(wrong)
    after = session.predict("2.png")
    assert after.revision == before.revision + 2 and (after.mask == before.mask).all()
    session.redo(wrong)
    assert (session.labels("2.png") != UNLABELED).any()


def test_merged_and_erased_labels_teach_nothing(session, pictures):
    label(session, pictures[1], ["0.png", "1.png"])
    session.merge_classes(2, 0)
    assert set(np.unique(session.predict("2.png").mask)) <= {0, 1}
    height, width = session.picture("0.png").size
    for name in ("0.png", "1.png"):
        height, width = session.picture(name).size
        session.draw(name, [[y, 0, width, UNLABELED] for y in range(height)])
    assert session.fit_live() is None and session.labelled_names() == []


def test_accept_takes_the_region_that_is_shown(session, pictures):
    label(session, pictures[1], ["0.png", "1.png"])
    ys, xs = np.nonzero(session.predict("2.png").mask == 1)
    y, x = int(ys[len(ys) // 2]), int(xs[len(xs) // 2])
    region, own = session.accept("2.png", y, x)
    assert own == 1 and region[y, x] and (session.predict("2.png").mask[region] == 1).all()
    with pytest.raises(UserError, match="lies outside 2.png, which is 30 x 24 pixels"):
        session.accept("2.png", 24, 0)


def test_pixels_without_a_measurement_are_of_no_class(open_session, pictures):
    values = np.asarray(Image.open(pictures[0] / "2.png").convert("L")) / np.float32(255)
    values[:, :6] = np.nan
    tifffile.imwrite(pictures[0] / "map.tif", values)
    session = open_session()
    session.extract()
    label(session, pictures[1], ["0.png", "1.png"])
    mask = session.predict("map.tif").mask
    assert (mask[:, :6] == UNLABELED).all() and (mask[:, 6:] < 3).all()
    with pytest.raises(UserError, match="holds no measurement"):
        session.accept("map.tif", 3, 3)
    places = next(own.places for own in session.suggest("map.tif") if own.picture == "map.tif")
    assert places and all(x >= 5 for _, x, _ in places)
    session.draw("map.tif", [[5, 0, 12, 1]])
    assert session.labeled_images()[2].mask[5].tolist()[:12] == [UNLABELED] * 6 + [1] * 6


def test_nothing_can_be_accepted_before_there_is_a_mask(session):
    with pytest.raises(UserError, match="draw strokes of two classes first"):
        session.accept("2.png", 0, 0)


def test_the_same_folder_is_the_same_session(open_session, pictures, tmp_path):
    session = open_session()
    session.extract()
    label(session, pictures[1], ["0.png", "1.png"])
    session.add_class("moon")
    session.undo(2)
    again = open_session(class_names=["other"])
    assert [c.name for c in again.classes] == [*NAMES, "moon"] and again.revision == session.revision
    assert all((again.labels(n) == session.labels(n)).all() for n in session.pictures)
    again.extract()
    assert (again.predict("2.png").mask == session.predict("2.png").mask).all()


def test_classes_are_checked_before_anything_is_written(open_session, tmp_path):
    for names, said in ((["a", " a "], "'a' is given twice"), (["a", ""], "1 to 100 characters")):
        with pytest.raises(UserError, match=said):
            open_session(class_names=names)
        assert not (tmp_path / "session").exists()


def test_other_classes_for_a_session_that_has_some_get_a_line(open_session):
    assert open_session().notes == [] and open_session().notes == []
    assert "has classes already, sky, disc, bar;" in open_session(class_names=["other"]).notes[0]


def test_another_process_cannot_open_it(open_session, pictures, tmp_path):
    open_session()
    program = (
        "import sys; from pathlib import Path\n"
        "from diffuseseg_diffusers.jobs.locks import try_lock_folder\n"
        "sys.exit(0 if not try_lock_folder(Path(sys.argv[1])) else 1)\n"
    )
    subprocess.run([sys.executable, "-c", program, str(tmp_path / "session")], check=True)


@pytest.mark.parametrize("content", ["diary.txt", "record"])
def test_folders_with_something_else_are_left_alone(open_session, tmp_path, content):
    from diffuseseg_diffusers.jobs.files import write_record

    (tmp_path / "session").mkdir()
    if content == "record":
        write_record(tmp_path / "session", "generate", ["data/*"])
        said = "was made by .diffuseseg generate.; choose another folder"
    else:
        (tmp_path / "session" / content).write_text("mine")
        said = "holds files that are no session"
    before = sorted(p.name for p in (tmp_path / "session").iterdir())
    with pytest.raises(UserError, match=said):
        open_session()
    assert sorted(p.name for p in (tmp_path / "session").iterdir()) == before


def test_a_file_is_no_session(open_session, tmp_path):
    (tmp_path / "session").write_text("mine")
    with pytest.raises(UserError, match="is a file"):
        open_session()


def test_a_student_does_not_fit(open_session, tmp_path):
    from diffuseseg_diffusers.students.networks import make_processor, make_student
    from diffuseseg_diffusers.students.student import StudentSegmenter

    from ..students.test_networks import write_config

    student = StudentSegmenter(make_student(write_config(tmp_path), NAMES), make_processor("nvidia/mit-b0", (32, 32)))
    with pytest.raises(UserError, match="The model is a student or several, with no features"):
        open_session(pipe=student)
    assert not (tmp_path / "session").exists()


def test_pictures_with_other_channels_than_the_model_are_converted_or_refused(open_session, pictures):
    """Colour pictures for a grey model, and grey ones for a model of colours."""
    Image.new("RGB", (20, 20), (200, 10, 10)).save(pictures[0] / "colour.png")
    session = open_session()
    session.extract()
    assert "colour.png" in session.ready
    colour = open_session(pipe=make_pipeline(in_channels=3, out_channels=3))
    colour.extract()
    assert len(colour.ready) == 7


def test_pictures_that_break_later_are_left_out_with_the_reason(open_session, pictures):
    session = open_session()
    path = pictures[0] / "3.png"
    path.write_bytes(path.read_bytes()[:200])
    session.extract()
    assert "3.png" not in session.pictures and "3.png" in session.left_out["3.png"]
    assert len(session.ready) == 5


def test_pictures_that_changed_their_size_keep_their_strokes(open_session, pictures):
    session = open_session()
    label(session, pictures[1], ["0.png", "1.png"])
    Image.new("L", (50, 40)).save(pictures[0] / "0.png")
    (pictures[0] / "1.png").unlink()
    again = open_session()
    assert "0.png" not in again.pictures and "was 30 x 24 pixels when it was labelled" in again.left_out["0.png"]
    assert any("1 labelled pictures are gone, 1.png too" in note for note in again.notes)
    assert len(again.journal.active()) == len(session.journal.active())


@pytest.mark.slow
def test_kill_9_while_features_are_extracted_keeps_those_that_are_done(pictures, tmp_path, pipe, open_session):
    pipe.save_pretrained(tmp_path / "model")
    program = (
        "import sys, os, signal\n"
        "from diffuseseg_diffusers import load_pipeline\n"
        "from diffuseseg_diffusers.labeling.session import LabelSession\n"
        "s = LabelSession(load_pipeline(sys.argv[1], dtype='float32'), sys.argv[2], sys.argv[3], ['sky', 'disc'])\n"
        "s.extract(lambda done, total: os.kill(os.getpid(), signal.SIGKILL) if done == 3 else None)\n"
    )
    arguments = [tmp_path / "model", pictures[0], tmp_path / "session"]
    ended = subprocess.run([sys.executable, "-c", program, *map(str, arguments)], capture_output=True)
    assert ended.returncode == -signal.SIGKILL, ended.stderr.decode()
    session = open_session()
    assert sum(session.store.has(name) for name in session.pictures) == 3
    session.extract()
    assert len(session.ready) == 6


def test_finish_fits_the_recipe_on_the_strokes(pictures, tmp_path):
    own = make_pipeline()
    session = LabelSession(own, pictures[0], tmp_path / "session", NAMES, QUICK)
    with pytest.raises(UserError, match="Nothing is labelled yet"):
        session.finish()
    label(session, pictures[1], ["0.png", "1.png", "2.png"])
    session.add_class("never drawn")
    head = session.finish(num_members=3)
    assert own.segmentation_head is head and head.config.label_names == [*NAMES, "never drawn"]
    dataset = session.labeled_images()
    assert len(dataset) == 3 and evaluate_segmentation(own, dataset)[0]["pixel_accuracy"] > 0.8


def test_ids_of_datasets_have_no_gaps(session, pictures):
    label(session, pictures[1], ["0.png"])
    session.merge_classes(0, 2)
    dataset = session.labeled_images()
    assert dataset.label_names == ["disc", "bar"] and set(np.unique(dataset[0].mask)) == {0, 1, 255}
    assert dataset.palette == [c.color for c in session.classes]


def test_suggestions_begin_without_labels_and_name_places(session, pictures):
    found = session.suggest()
    assert {s.picture for s in found} == set(session.pictures)
    assert len(found[0].places) == 5 and not found[1].places
    label(session, pictures[1], [found[0].picture])
    again = session.suggest(places_of="5.png", count=2)
    assert again[0].picture != found[0].picture
    own = next(s for s in again if s.picture == "5.png")
    assert 1 <= len(own.places) <= 2 and all(0 <= y < 16 and 0 <= x < 16 and why for y, x, why in own.places)


def test_strokes_of_many_threads_all_arrive(session):
    def work(row):
        for x in range(20):
            session.draw("0.png", [[row, x, x + 1, row % 3]])

    threads = [threading.Thread(target=work, args=(row,)) for row in range(6)]
    for thread in threads:
        thread.start()
    for thread in threads:
        thread.join()
    assert len(session.journal.active()) == 120
    assert (session.labels("0.png")[:6, :20] == np.arange(6)[:, None] % 3).all()


def test_names_that_are_none_are_refused(session):
    for name in ("../secret.png", "/etc/passwd", "9.png", ""):
        with pytest.raises(UserError, match="There is no picture"):
            session.draw(name, [[0, 0, 1, 0]])


def test_finishing_while_features_are_extracted_mixes_no_features(open_session, pictures, monkeypatch):
    """Hooks are of the model: two passes at once would read each other's activations."""
    expected = open_session(recipe=QUICK)
    expected.extract()
    grids = {name: expected.grid(name).clone() for name in expected.pictures}
    shutil.rmtree(expected.store.folder)
    session = open_session(recipe=QUICK)
    for name in ("0.png", "1.png"):
        label(session, pictures[1], [name])
    inside, most = [], []
    real = type(session.extractor).__call__

    def counted(self, *args, **kwargs):
        inside.append(1)
        most.append(len(inside))
        time.sleep(0.02)
        try:
            return real(self, *args, **kwargs)
        finally:
            inside.pop()

    monkeypatch.setattr(type(session.extractor), "__call__", counted)
    thread = threading.Thread(target=session.extract)
    thread.start()
    session.finish(num_members=1)
    thread.join()
    assert max(most) == 1 and all(torch.equal(session.grid(name), grids[name]) for name in grids)


def test_the_live_head_learns_from_pictures_that_become_ready(open_session, pictures):
    session = open_session()
    session.extract()
    label(session, pictures[1], ["0.png", "4.png"])
    expected = session.predict("2.png").mask
    again = open_session()
    again.store.folder.joinpath(again.store.path("4.png").name).unlink()

    def ask(done, total):
        if done == 3:
            again.predict("2.png")

    again.extract(ask)
    assert np.array_equal(again.predict("2.png").mask, expected)


def test_two_sessions_of_a_process_keep_each_others_strokes(open_session, pictures, tmp_path):
    one, other = open_session(), open_session()
    for i in range(3):
        assert (one.draw("0.png", [[i, 0, 3, 1]]), other.draw("0.png", [[i + 5, 0, 3, 2]])) == (2 * i + 1, 2 * i + 2)
    one.undo(6)
    third = open_session()
    assert len(third.journal.active()) == 5 and (third.labels("0.png")[:3, :3] == 1).all()
    # Another session does not let other processes into the first one's folder.
    LabelSession(one.pipe, pictures[0], tmp_path / "second", ["sky"])
    program = "import sys; from pathlib import Path; from diffuseseg_diffusers.jobs.locks import try_lock_folder\n"
    program += "sys.exit(sum(map(try_lock_folder, map(Path, sys.argv[1:]))))"
    folders = [tmp_path / "session", tmp_path / "second"]
    assert subprocess.run([sys.executable, "-c", program, *folders]).returncode == 0


def test_accepting_leaves_what_the_hand_has_labelled(open_session, pictures):
    session = open_session()
    session.extract()
    label(session, pictures[1], ["0.png", "1.png"])
    region, own = session.accept("0.png", 0, 0)
    assert not (region & (session.labels("0.png") != 255)).any()
    session.draw("0.png", [[row, 0, 30, own] for row in range(24)])
    with pytest.raises(UserError, match="labelled by hand already"):
        session.accept("0.png", 0, 0)


def test_approved_and_skipped_pictures_are_suggested_last(session, pictures):
    label(session, pictures[1], ["0.png"])
    first, second = (own.picture for own in session.suggest()[:2])
    session.set_state(first, "approved")
    session.set_state(second, "skipped")
    found = session.suggest()
    assert {(s.picture, s.gain, s.reason) for s in found[-2:]} == {(first, 0, "approved"), (second, 0, "skipped")}
    assert found[0].places and not found[-1].places and len(found) == 6
    # Where nothing is left to do, they are ranked as ever.
    for name in session.pictures:
        session.set_state(name, "skipped")
    ranked = session.suggest()
    assert {s.picture for s in ranked} == set(session.pictures) and ranked[0].gain >= ranked[-1].gain
    assert not {s.reason for s in ranked} & {"approved", "skipped"} and ranked[0].gain > 0


def test_states_are_of_pictures_of_the_session_and_last(session, open_session):
    with pytest.raises(UserError, match="There is no picture"):
        session.set_state("9.png", "approved")
    session.set_state("0.png", "approved")
    assert open_session().journal.states == {"0.png": "approved"}


def test_approving_does_not_fit_the_live_head_again(session, pictures):
    label(session, pictures[1], ["0.png", "1.png"])
    session.predict("2.png")
    head = session.head
    session.set_state("0.png", "approved")
    assert session.predict("2.png").revision == session.revision and session.head is head
    session.order_classes([2, 1, 0])
    session.predict("2.png")
    assert session.head is not head


def test_a_deleted_class_teaches_nothing_and_is_not_in_datasets(session, pictures, open_session):
    label(session, pictures[1], ["0.png", "1.png"])
    session.order_classes([2, 1, 0])
    session.delete_class(1)
    assert set(np.unique(session.predict("2.png").mask)) <= {0, 2}
    dataset = session.labeled_images()
    assert dataset.label_names == ["bar", "sky"] and set(np.unique(dataset[0].mask)) == {0, 1, 255}
    assert ((dataset[0].mask == 1) == (session.labels("0.png") == 0)).all()
    # Its name does not come back with the command that began the session.
    for own in session.classes:
        session.delete_class(own.id)
    again = open_session()
    assert again.classes == [] and "all of them deleted" in again.notes[-1]


def test_statistics_are_those_of_the_labels_and_count_changed_pictures_alone(session, pictures, monkeypatch):
    def plain():
        maps = [session.labels(name) for name in session.pictures]
        return {
            c.id: (sum((m == c.id).sum() for m in maps), sum((m == c.id).any() for m in maps)) for c in session.classes
        }

    label(session, pictures[1], ["0.png", "1.png", "2.png"])
    assert session.statistics() == plain() and session.statistics()[0][1] == 3
    counted, real = [], session.journal.labels
    monkeypatch.setattr(session.journal, "labels", lambda name, size: counted.append(name) or real(name, size))
    session.statistics()
    session.set_state("0.png", "approved")
    session.statistics()
    assert counted == []
    session.draw("1.png", [[0, 0, 9, UNLABELED], [1, 0, 9, 2]])
    assert session.statistics() and counted == ["1.png"]
    for act in (lambda: session.undo(1), lambda: session.merge_classes(1, 0), lambda: session.delete_class(2)):
        act()
        assert session.statistics() == plain()
    assert list(session.statistics()) == [0]


def test_planes_are_labelled_like_pictures(stack, tmp_path, pipe):
    folder, masks, values = stack
    session = LabelSession(pipe, folder, tmp_path / "session", NAMES)
    session.extract()
    assert list(session.pictures) == list(masks) and len(session.ready) == 12
    assert not torch.equal(session.grid("stack.tif, z 1"), session.grid("stack.tif, z 12"))
    label(session, masks, ["stack.tif, z 2", "stack.tif, z 9"])
    assert (session.labels("stack.tif, z 3") == UNLABELED).all()
    right = np.mean([(session.predict(name).mask == mask).mean() for name, mask in masks.items()])
    assert right > 0.8
    dataset = session.labeled_images()
    assert [Path(one.name).name for one in dataset] == ["stack.tif, z 2", "stack.tif, z 9"]
    for one, z in zip(dataset, (1, 8)):
        assert one.image.dtype == np.uint16 and np.array_equal(one.image[..., 0], values[z])
        assert (one.mask == session.labels(f"stack.tif, z {z + 1}")).all()


def test_a_head_is_fitted_on_planes(stack, tmp_path):
    folder, masks, _ = stack
    session = LabelSession(make_pipeline(), folder, tmp_path / "session", NAMES, QUICK)
    label(session, masks, list(masks)[::4])
    session.finish(num_members=2)
    assert evaluate_segmentation(session.pipe, session.labeled_images())[0]["pixel_accuracy"] > 0.8


def test_features_and_strokes_of_planes_are_there_again(stack, tmp_path, pipe, monkeypatch):
    folder, masks, _ = stack
    session = LabelSession(pipe, folder, tmp_path / "session", NAMES)
    session.extract()
    label(session, masks, ["stack.tif, z 2"])
    drawn = session.labels("stack.tif, z 2")
    again = LabelSession(pipe, folder, tmp_path / "session")
    monkeypatch.setattr(again.store, "extract", lambda *a: pytest.fail("extracted again"))
    again.extract()
    assert np.array_equal(again.labels("stack.tif, z 2"), drawn) and again.labelled_names() == ["stack.tif, z 2"]


def test_planes_of_a_stack_that_has_others_now_keep_their_strokes(stack, tmp_path, pipe):
    folder, masks, values = stack
    session = LabelSession(pipe, folder, tmp_path / "session", NAMES)
    label(session, masks, ["stack.tif, z 2"])
    tifffile.imwrite(folder / "stack.tif", values[:11], imagej=True, metadata={"axes": "ZYX"})
    with pytest.raises(UserError, match="stack.tif had 12 planes and has 11 now"):
        session.labeled_images()[0]
    again = LabelSession(pipe, folder, tmp_path / "session")
    said = "was one of 12 planes when it was labelled and is now one of 11; its strokes are kept for the old one"
    assert again.left_out == {"stack.tif, z 2": said} and f"stack.tif, z 2 {said}." in again.notes
    assert "stack.tif, z 2" not in again.pictures and "stack.tif, z 3" in again.pictures
    label(again, masks, ["stack.tif, z 3"])
    tifffile.imwrite(folder / "stack.tif", values, imagej=True, metadata={"axes": "ZYX"})
    assert LabelSession(pipe, folder, tmp_path / "session").labelled_names() == ["stack.tif, z 2"]


def test_neighbouring_planes_are_not_suggested_in_a_row(stack, tmp_path, pipe):
    folder, masks, _ = stack
    session = LabelSession(pipe, folder, tmp_path / "session", NAMES)
    session.extract()
    asked = []
    for _ in range(4):
        name = session.suggest(count=0)[0].picture
        label(session, masks, [name])
        asked.append(int(name.split()[-1]))
    assert min(abs(a - b) for i, a in enumerate(asked) for b in asked[:i]) > 1, asked
