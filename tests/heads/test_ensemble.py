# Copyright 2026 The DiffuseSeg for Diffusers authors. Licensed under the Apache License, Version 2.0.
import json
import math

import pytest
import torch
import torch.nn.functional as F
from hypothesis import given, settings
from hypothesis import strategies as st
from safetensors.torch import load_file

from diffuseseg_diffusers import PixelClassifierEnsemble, image_uncertainty
from diffuseseg_diffusers.heads import ensemble as module
from diffuseseg_diffusers.heads import upsampling
from diffuseseg_diffusers.jobs.errors import UserError

from ..conftest import make_head, make_pipeline, shared


def naive_logits(head, activations, size):
    """The published way: upsample every activation, concatenate, classify pixel by pixel, member by member."""
    full = [F.interpolate(a.float(), size=size, mode="bilinear", align_corners=False) for a in activations]
    features = torch.cat(full, dim=1)  # [N,D,H,W]
    first, _, norm1, second, _, norm2, third = head.layers
    members = []
    for k in range(head.config.num_members):
        x = features.flatten(2).movedim(1, -1)  # [N,P,D]
        for linear, norm in ((first, norm1), (second, norm2)):
            x = F.relu(F.linear(x, linear.weight[k], linear.bias[k]))
            x = (x - norm.running_mean[k]) / (norm.running_var[k] + norm.eps).sqrt() * norm.weight[k] + norm.bias[k]
        x = F.linear(x, third.weight[k], third.bias[k])
        members.append(x.movedim(-1, 1).unflatten(-1, size))
    return torch.stack(members, 1)  # [N,K,C,H,W]


def random_activations(head, resolutions, n=2, seed=0):
    torch.manual_seed(seed)
    per_step = [torch.Size(r) for r in resolutions]
    return [torch.randn(n, c, *r) for _ in head.config.timesteps for c, r in zip(head.config.block_channels, per_step)]


@pytest.mark.parametrize("strip", [1, 2**12, 2**26])
@pytest.mark.parametrize(
    "size, resolutions",
    [
        ((16, 16), [(4, 4), (8, 8), (16, 16)]),  # square
        ((16, 24), [(4, 6), (8, 12), (16, 24)]),  # not square
        ((37, 23), [(4, 4), (8, 8), (16, 16)]),  # odd, and of another shape than the U-Net's input
        ((7, 5), [(4, 4), (8, 8), (16, 16)]),  # smaller than an activation
        ((1, 1), [(4, 4), (8, 8), (16, 16)]),
        ((50, 70), [(20, 34), (10, 32), (50, 70)]),  # wider and narrower than what is interpolated
    ],
)
def test_fused_logits_equal_upsample_concatenate_classify(size, resolutions, strip, monkeypatch):
    monkeypatch.setattr(module, "STRIP_BYTES", {"cpu": strip})
    head = make_head(make_pipeline())
    activations = random_activations(head, resolutions)
    with torch.no_grad():
        fused, naive = head(activations, size).logits, naive_logits(head, activations, size)
    assert fused.shape == naive.shape == (2, 4, 3, *size)
    assert (fused - naive).abs().max() <= 1e-4 * naive.abs().max()


@settings(max_examples=30, deadline=None)
@given(
    height=st.integers(1, 40),
    width=st.integers(1, 40),
    h=st.integers(1, 20),
    w=st.integers(1, 20),
    strip=st.sampled_from([1, 12000, 2**26]),
    narrow=st.sampled_from([0, 8, 32]),
    seed=st.integers(0, 100),
)
def test_fused_logits_equal_the_plain_formula_at_any_size(height, width, h, w, strip, narrow, seed):
    old = module.STRIP_BYTES, upsampling.NARROW
    module.STRIP_BYTES, upsampling.NARROW = {"cpu": strip}, narrow
    try:
        head = make_head(make_pipeline(), blocks=(1, 5), seed=seed)
        activations = random_activations(head, [(h, w), (height, width)], n=1, seed=seed)
        with torch.no_grad():
            fused, naive = head(activations, (height, width)).logits, naive_logits(head, activations, (height, width))
        assert (fused - naive).abs().max() <= 1e-4 * naive.abs().max()
    finally:
        module.STRIP_BYTES, upsampling.NARROW = old


def test_masks_agree_with_the_naive_ones_on_all_but_one_pixel_in_ten_thousand():
    head = make_head(make_pipeline(), num_members=10, num_classes=7)
    activations = random_activations(head, [(8, 8), (16, 16), (32, 32)], n=16)
    naive = naive_logits(head, activations, (61, 67)).argmax(2)  # [N,K,H,W]
    expected = torch.mode(naive, dim=1).values
    agreement = (head.predict(activations, (61, 67)).labels == expected).float().mean()
    assert agreement >= 0.9999


def published_head():
    reference = load_file(shared("reference/pixel_classifier.safetensors"))
    members = [
        {k.removeprefix(f"member.{m}."): v for k, v in reference.items() if k.startswith(f"member.{m}.")}
        for m in range(5)
    ]
    head = PixelClassifierEnsemble(
        num_classes=7, block_channels=[48], blocks=[0], timesteps=[50], num_members=5, image_size=[24, 20]
    ).eval()
    head.load_state_dict(PixelClassifierEnsemble.stack_members(members))
    return head, reference


def test_the_published_classifiers_are_reproduced():
    head, reference = published_head()
    maps = [reference["features"].T.reshape(1, 48, 24, 20)]
    with torch.no_grad():
        logits = head(maps, (24, 20)).logits[0].flatten(2).transpose(1, 2)  # [K,P,C]
        plain = head.classify(reference["features"].T.expand(5, -1, -1)).transpose(1, 2)
    torch.testing.assert_close(logits, reference["logits"], atol=1e-5, rtol=1e-5)
    torch.testing.assert_close(plain, reference["logits"], atol=1e-5, rtol=1e-5)
    output = head.predict(maps, (24, 20))
    assert torch.equal(output.labels[0].long(), reference["mask"])
    torch.testing.assert_close(image_uncertainty(output.uncertainty), reference["uncertainty"], atol=1e-5, rtol=1e-5)


def test_members_are_taken_as_the_published_code_saves_them():
    """`torch.save({"model_state_dict": nn.DataParallel(classifier).state_dict()}, path)`."""
    layers = [torch.nn.Linear(6, 128), torch.nn.ReLU(), torch.nn.BatchNorm1d(128), torch.nn.Linear(128, 32)]
    layers += [torch.nn.ReLU(), torch.nn.BatchNorm1d(32), torch.nn.Linear(32, 3)]
    classifier = torch.nn.Module()
    classifier.layers = torch.nn.Sequential(*layers)
    saved = {"model_state_dict": torch.nn.DataParallel(classifier).state_dict()}
    assert "module.layers.0.weight" in saved["model_state_dict"]
    stacked = PixelClassifierEnsemble.stack_members([saved, classifier.state_dict()])
    head = PixelClassifierEnsemble(num_classes=3, block_channels=[6], blocks=[0], timesteps=[50], num_members=2)
    head.load_state_dict(stacked)
    assert torch.equal(stacked["layers.3.weight"][0], layers[3].weight)
    other = {name.replace("layers.0", "fc1"): tensor for name, tensor in classifier.state_dict().items()}
    with pytest.raises(UserError, match="Member 1 is not a pixel classifier like the first.*fc1.weight"):
        PixelClassifierEnsemble.stack_members([saved, other])


def test_ties_go_to_the_smaller_class_as_in_torch_mode():
    head = make_head(make_pipeline(), num_members=4)
    activations = random_activations(head, [(4, 4), (8, 8), (16, 16)], n=4)
    votes = head(activations).logits.argmax(2)  # [N,K,H,W]
    counts = F.one_hot(votes, 3).sum(1).sort(dim=-1).values
    assert (counts[..., -1] == counts[..., -2]).any(), "there are ties to test"
    assert torch.equal(head.predict(activations).labels.long(), torch.mode(votes, dim=1).values)


@pytest.mark.parametrize("members", [2, 3, 5])
@pytest.mark.parametrize("strip", [1, 2**14])
def test_both_halves_of_the_members_go_through_the_same_strips(members, strip, monkeypatch):
    monkeypatch.setattr(module, "STRIP_BYTES", {"cpu": strip})
    head = make_head(make_pipeline(), voting="soft", flip=True, num_members=members)
    straight, mirrored = (random_activations(head, [(4, 4), (8, 8), (16, 16)], n=3, seed=s) for s in (0, 1))
    half = (members + 1) // 2
    views = [
        naive_logits(head, straight, (13, 19))[:, :half],
        naive_logits(head, mirrored, (13, 19)).flip(-1)[:, half:],
    ]
    output = head.predict(straight, (13, 19), return_probabilities=True, mirrored=mirrored)
    torch.testing.assert_close(output.probabilities, torch.cat(views, 1).softmax(2).mean(1), atol=1e-5, rtol=1e-4)


def test_a_single_member_sees_the_image_and_its_mirror_image():
    head = make_head(make_pipeline(), voting="soft", flip=True, num_members=1)
    straight, mirrored = (random_activations(head, [(4, 4), (8, 8), (16, 16)], seed=s) for s in (0, 1))
    views = [naive_logits(head, straight, (13, 19)), naive_logits(head, mirrored, (13, 19)).flip(-1)]
    output = head.predict(straight, (13, 19), return_probabilities=True, mirrored=mirrored)
    torch.testing.assert_close(output.probabilities, torch.cat(views, 1).softmax(2).mean(1), atol=1e-5, rtol=1e-4)


def test_soft_votes_and_mirror_images_are_what_the_plain_formula_gives():
    head = make_head(make_pipeline(), voting="soft", flip=True)
    straight, mirrored = (random_activations(head, [(4, 4), (8, 8), (16, 16)], seed=s) for s in (0, 1))
    views = [naive_logits(head, straight, (13, 19)), naive_logits(head, mirrored, (13, 19)).flip(-1)]
    half = (head.config.num_members + 1) // 2
    views = torch.cat([views[0][:, :half], views[1][:, half:]], 1)
    probabilities = views.softmax(2)  # [N,K,C,H,W]
    mean = probabilities.mean(1)
    output = head.predict(straight, (13, 19), return_probabilities=True, mirrored=mirrored)
    assert torch.equal(output.labels.long(), mean.argmax(1))
    torch.testing.assert_close(output.probabilities, mean, atol=1e-5, rtol=1e-4)
    entropy = -torch.xlogy(mean, mean).sum(1) + torch.xlogy(probabilities, probabilities).sum(2).mean(1)
    torch.testing.assert_close(output.uncertainty, entropy, atol=1e-5, rtol=1e-3)
    hard = make_head(make_pipeline(), flip=True).predict(straight, (13, 19), mirrored=mirrored).labels
    assert torch.equal(hard.long(), torch.mode(views.argmax(2), dim=1).values) and not torch.equal(hard, output.labels)


def filtering_head(**config):
    """Six members that read activations, filters and both; weights of what a member does not read are zero."""
    kinds = ["activations", "filters", "both"] * 2
    head = make_head(make_pipeline(), num_members=6, filters=[1.0, 3.5], member_inputs=kinds, voting="soft", **config)
    weight, last = head.layers[0].weight.data, head.channels[-1]
    assert last == 1 + 2 * 8 and head.config.format_version == 6
    weight[[0, 3], :, -last:] = 0
    weight[[1, 4], :, :-last] = 0
    return head


def filtered_activations(head, seed=0):
    activations = random_activations(head, [(4, 4), (8, 8), (16, 16)], seed=seed)
    return [*activations, torch.randn(2, head.channels[-1], 16, 16)]


@pytest.mark.parametrize("size", [(16, 16), (13, 19)])
def test_members_read_activations_filters_or_both_and_have_weights_in_the_vote(size):
    weights = [3.0, 1.0, 2.0, 0.0, 1.0, 0.5]
    head = filtering_head(member_weights=weights)
    straight, mirrored = filtered_activations(head), filtered_activations(head, 1)
    views = [naive_logits(head, straight, size), naive_logits(head, mirrored, size).flip(-1)]
    torch.testing.assert_close(head(straight, size).logits, views[0], atol=1e-4, rtol=1e-4)
    probabilities = torch.cat([views[0][:, :3], views[1][:, 3:]], 1).softmax(2)  # [N,K,C,H,W]
    share = (torch.tensor(weights) / sum(weights)).view(6, 1, 1, 1)
    mean = (probabilities * share).sum(1)
    output = head.predict(straight, size, return_probabilities=True, mirrored=mirrored)
    torch.testing.assert_close(output.probabilities, mean, atol=1e-5, rtol=1e-4)
    assert torch.equal(output.labels.long(), mean.argmax(1))
    entropy = torch.xlogy(probabilities, probabilities).sum(2)
    expected = (entropy * share[..., 0]).sum(1) - torch.xlogy(mean, mean).sum(1)
    torch.testing.assert_close(output.uncertainty, expected, atol=1e-5, rtol=1e-3)


def test_what_a_member_does_not_read_is_not_multiplied():
    head = filtering_head()
    activations = filtered_activations(head)
    without = [activations[0] * math.nan, *activations[1:-1], activations[-1]]
    found = head(without).logits.isnan().flatten(2).any(2).all(0)  # [K]
    assert found.tolist() == [True, False, True] * 2


def test_heads_from_before_mirror_images_and_soft_votes_load_as_they_were(tmp_path):
    head = make_head(make_pipeline())
    head.save_pretrained(tmp_path)
    config = json.loads((tmp_path / "config.json").read_text())
    config["format_version"] = 1
    del config["flip"], config["voting"]
    (tmp_path / "config.json").write_text(json.dumps(config))
    old = PixelClassifierEnsemble.from_pretrained(tmp_path)
    assert (old.config.flip, old.config.voting) == (False, "hard")
    activations = random_activations(head, [(4, 4), (8, 8), (16, 16)])
    assert torch.equal(old.predict(activations).labels, head.predict(activations).labels)


def test_uncertainty_is_the_jensen_shannon_divergence_in_nats():
    head = make_head(make_pipeline())
    activations = random_activations(head, [(4, 4), (8, 8), (16, 16)])
    output = head.predict(activations, return_probabilities=True)
    members = torch.distributions.Categorical(logits=head(activations).logits.movedim(2, -1))
    mean = members.probs.mean(1)
    expected = torch.distributions.Categorical(probs=mean).entropy() - members.entropy().mean(1)
    torch.testing.assert_close(output.uncertainty, expected, atol=1e-6, rtol=1e-4)
    torch.testing.assert_close(output.probabilities, mean.movedim(-1, 1), atol=1e-6, rtol=1e-4)
    assert 0 <= output.uncertainty.min() and output.uncertainty.max() <= math.log(4)
    top = expected.flatten(1).sort(dim=1).values[:, -25:].mean(1)  # 10 % of 256 pixels
    torch.testing.assert_close(image_uncertainty(output.uncertainty), top, atol=1e-6, rtol=1e-4)
    torch.testing.assert_close(image_uncertainty(output.uncertainty.numpy()), top, atol=1e-6, rtol=1e-4)  # of `segment`


def test_members_that_agree_are_certain():
    head = make_head(make_pipeline())
    for tensor in head.state_dict().values():
        tensor.copy_(tensor[:1].expand_as(tensor))
    output = head.predict(random_activations(head, [(4, 4), (8, 8), (16, 16)]))
    assert output.uncertainty.max() < 1e-6


def test_bfloat16_masks_agree_but_for_pixels_on_the_edge():
    head = make_head(make_pipeline())
    activations = random_activations(head, [(4, 4), (8, 8), (16, 16)], n=8)
    exact = head.predict(activations).labels
    rough = head.predict([a.bfloat16() for a in activations])
    assert head.dtype == torch.float32  # arithmetic follows the activations, the weights keep their digits
    assert rough.uncertainty.dtype == torch.float32
    assert (rough.labels == exact).float().mean() > 0.95


@pytest.mark.parametrize("num_classes, sizes", [(29, (128, 32)), (30, (256, 128))])
def test_hidden_sizes_follow_the_number_of_classes(num_classes, sizes):
    head = PixelClassifierEnsemble(
        num_classes=num_classes, block_channels=[8], blocks=[0], timesteps=[50], num_members=2
    )
    assert [head.layers[i].weight.shape[1] for i in (0, 3)] == list(sizes)


def test_a_head_survives_saving_bit_for_bit_with_all_that_its_config_holds(tmp_path):
    head = make_head(
        make_pipeline(), label_names=["a", "b", "c"], palette=[[0, 0, 0], [1, 2, 3], [4, 5, 6]], ignore_index=7
    )
    head.save_pretrained(tmp_path)
    assert sorted(p.suffix for p in tmp_path.iterdir()) == [".json", ".safetensors"]
    again = PixelClassifierEnsemble.from_pretrained(tmp_path)
    public = {k: v for k, v in head.config.items() if not k.startswith("_")}
    assert public == {k: v for k, v in again.config.items() if not k.startswith("_")}
    assert head.state_dict().keys() == again.state_dict().keys()
    assert all(torch.equal(v, again.state_dict()[k]) for k, v in head.state_dict().items())


def test_wrong_arguments_are_refused():
    with pytest.raises(ValueError, match="2 to 256 classes, got 1"):
        PixelClassifierEnsemble(num_classes=1, block_channels=[8], blocks=[0], timesteps=[50])
    with pytest.raises(ValueError, match="`label_names` has 2 entries for 3 classes"):
        PixelClassifierEnsemble(num_classes=3, block_channels=[8], blocks=[0], timesteps=[50], label_names=["a", "b"])
    with pytest.raises(ValueError, match="Two classes have the same name"):
        PixelClassifierEnsemble(
            num_classes=3, block_channels=[8], blocks=[0], timesteps=[50], label_names=["a", "b", "a"]
        )
    with pytest.raises(ValueError, match="`block_channels` has 2 entries for 1 blocks"):
        PixelClassifierEnsemble(num_classes=3, block_channels=[8, 8], blocks=[0], timesteps=[50])
    given = dict(num_classes=3, block_channels=[8], blocks=[0], timesteps=[50], num_members=2)
    for wrong, why in (
        ({"member_inputs": ["filters", "activations"]}, "need both `blocks` and `filters`"),
        ({"member_inputs": ["filters", "pixels"], "filters": [1.0]}, "Members read .*got 'pixels'"),
        ({"member_weights": [1.0], "voting": "soft"}, "has 1 entries for 2 members"),
        ({"member_weights": [1.0, 1.0]}, "of soft votes"),
        ({"member_weights": [1.0, math.inf], "voting": "soft"}, "of soft votes"),
        ({"filters": [1.0] * 1000}, "up to 32 scales"),
        ({"filters": [1e9]}, "0.1 to 64 pixels"),
        ({"filters": [math.nan]}, "0.1 to 64 pixels"),
        ({"image_size": "ab"}, "`image_size` is"),
        ({"image_size": [16, 0]}, "`image_size` is"),
        ({"tiling": [1]}, "`tiling` is"),
        ({"tiling": {"tiles": "yes"}}, "`tiling` is"),
        ({"tiling": {"scale": 0}}, "`tiling` is"),
        ({"tiling": {"tiles": True, "scale": 1e-30}}, "`tiling` is"),
        ({"tiling": {"tiles": True, "scale": 1.0, "pixel_size": "1 µm"}}, "`tiling` is"),
    ):
        with pytest.raises(ValueError, match=why):
            PixelClassifierEnsemble(**given, **wrong)
    head = make_head(make_pipeline())
    with pytest.raises(ValueError, match=r"activations of \[24, 16, 8, 24, 16, 8\] channels, got \[5\]"):
        head([torch.zeros(1, 5, 4, 4)], (8, 8))


def test_stacked_batch_norms_are_those_of_pytorch_member_by_member_in_training_and_in_use():
    generator = torch.Generator().manual_seed(0)
    ours, plain = module.StackedBatchNorm(3, 5), [torch.nn.BatchNorm1d(5) for _ in range(3)]
    with torch.no_grad():
        for k, one in enumerate(plain):
            for own, other in ((ours.weight, one.weight), (ours.bias, one.bias)):
                own[k] = other.copy_(torch.rand(5, generator=generator))
    for step in range(4):
        x = torch.randn(3, 5, 40, generator=generator) * 10 ** (step - 2) + 5
        x[:, 0] = 0  # a feature that never varies, as behind a dead ReLU
        x.requires_grad_()
        xs = [one.detach().T.requires_grad_() for one in x]  # [P,features]
        y, ys = ours(x), [norm(one) for norm, one in zip(plain, xs)]
        torch.testing.assert_close(y, torch.stack([one.T for one in ys]), atol=1e-4, rtol=1e-4)
        of_y = torch.randn(y.shape, generator=generator)
        y.backward(of_y)
        for one, own in zip(ys, of_y):
            one.backward(own.T)
        found, expected = x.grad[:, 1:], torch.stack([one.grad.T[1:] for one in xs])
        torch.testing.assert_close(found, expected, atol=1e-4 * float(expected.abs().max()), rtol=1e-3)
    for name in ("weight", "bias"):
        grads = torch.stack([getattr(norm, name).grad for norm in plain])
        torch.testing.assert_close(getattr(ours, name).grad, grads, atol=1e-3, rtol=1e-4)
    for name in ("running_mean", "running_var"):
        torch.testing.assert_close(getattr(ours, name), torch.stack([getattr(norm, name) for norm in plain]))
    x = torch.randn(3, 5, 7, generator=generator)
    expected = torch.stack([norm.eval()(one.T).T for norm, one in zip(plain, x)])
    torch.testing.assert_close(ours.eval()(x), expected)
    with pytest.raises(ValueError, match="at least two pixels in training, got 1"):
        ours.train()(x[..., :1])
    with torch.autocast("cpu", torch.bfloat16):
        assert torch.equal(ours(x.bfloat16()), ours(x.bfloat16().float()).bfloat16())
