"""The networks are those that DESIGN describes, and say how to build themselves again."""

import inspect
import json

import pytest
import torch
import torch.nn.functional as F
import torchvision
from torch import nn

import mebqat_lite as mq
from mebqat_lite import models

SMALL = {  # name -> options, one image, shape of the output for two
    "digit_net": ({}, (1, 8, 8), (2, 10)),
    "digit_net_wide": ({}, (1, 8, 8), (2, 10)),
    "conv4": ({"channels": 8, "classes": 5}, (1, 28, 28), (2, 5)),
    "cnn8": ({}, (3, 40, 40), (2, 10)),
    "preact_resnet20": ({"width": 0.5}, (3, 32, 32), (2, 10)),
    "resnet20": ({}, (3, 32, 32), (2, 10)),
    "mobilenet_v2": ({}, (3, 32, 32), (2, 10)),
    "coordinate_net": ({"pairs": 8}, (2,), (2, 3)),
}


def convs(model):
    return [m for m in model.modules() if isinstance(m, nn.Conv2d)]


def count(model):
    return sum(p.numel() for p in model.parameters())


def maps(model, image):
    """Shape after each convolution, in order of execution."""
    shapes = []
    hooks = [m.register_forward_hook(lambda _m, _x, out: shapes.append(tuple(out.shape[1:]))) for m in convs(model)]
    with torch.no_grad():
        model.eval()(torch.zeros(1, *image))
    for hook in hooks:
        hook.remove()
    return shapes


def images(image, count=2):
    return torch.randn(count, *image, generator=torch.Generator().manual_seed(0))


def shake(model):
    """Statistics, gains and shifts as after training, so that their places matter."""
    torch.manual_seed(0)
    for norm in model.modules():
        if isinstance(norm, nn.BatchNorm2d):
            norm.running_mean.normal_(0, 0.3), norm.running_var.uniform_(0.5, 2)
            nn.init.uniform_(norm.weight, -1.5, 1.5), nn.init.normal_(norm.bias)
    return model.eval()


def plain(model, x, pools, dropout_before=None):
    """DESIGN's blocks written out: convolution, batch norm, ReLU, and only then the pool."""
    norms = [m for m in model.modules() if isinstance(m, nn.BatchNorm2d)]
    for index, (conv, norm) in enumerate(zip(convs(model), norms, strict=True)):
        x = F.conv2d(x, conv.weight, conv.bias, padding=conv.padding)
        x = F.relu(F.batch_norm(x, norm.running_mean, norm.running_var, norm.weight, norm.bias))
        x = F.max_pool2d(x, 2) if index in pools else x
    return x


@pytest.mark.parametrize("name", SMALL)
def test_output_shape_stem_and_body(name):
    options, image, shape = SMALL[name]
    model, x = models.build(name, **options), images(image)
    assert model(x).shape == shape and model.eval()(x).isfinite().all()
    if name != "mobilenet_v2":
        assert torch.equal(model(x), model.body(model.stem(x)))
        first = next(m for m in model.modules() if isinstance(m, (nn.Conv2d, nn.Linear)))
        assert any(m is first for m in model.stem.modules())
        assert sum(isinstance(m, (nn.Conv2d, nn.Linear)) for m in model.stem.modules()) == 1
    last = [m for m in model.modules() if isinstance(m, (nn.Conv2d, nn.Linear))][-1]
    assert isinstance(last, nn.Linear) and last.out_features == shape[1]


@pytest.mark.parametrize("name", SMALL)
def test_the_spec_rebuilds_an_equal_architecture_also_from_json(name):
    options = {**SMALL[name][0], **({"widths": (4, 5, 6, 7), "classes": 3} if name == "digit_net" else {})}
    model = models.build(name, **options)
    spec = json.loads(json.dumps(model.spec))
    assert spec["name"] == name and set(spec["options"]) == set(inspect.signature(models.MODELS[name]).parameters)
    again = models.build(spec["name"], **spec["options"])
    assert str(again) == str(model)
    again.load_state_dict(model.state_dict(), strict=True)
    x = images(SMALL[name][1])
    assert torch.equal(again.eval()(x), model.eval()(x))


def test_models_are_built_by_name_and_unknown_ones_are_answered_with_the_known():
    assert set(models.MODELS) >= set(SMALL)
    assert type(models.build("digit_net")) is type(mq.models.digit_net())
    with pytest.raises(ValueError, match=f"^no model 'resnet18'; known: {', '.join(models.MODELS)}$"):
        models.build("resnet18")
    with pytest.raises(TypeError, match="width"):
        models.build("cnn8", width=3)


def test_a_model_of_ones_own_is_registered_by_a_decorator(monkeypatch):
    monkeypatch.setattr(models, "MODELS", dict(models.MODELS))

    @models.architecture
    def tiny(classes=2):
        return nn.Linear(3, classes)

    assert models.build("tiny", classes=7).out_features == 7
    assert tiny(classes=7).spec == {"name": "tiny", "options": {"classes": 7}}
    assert tiny().spec == {"name": "tiny", "options": {"classes": 2}}


def test_the_spec_has_all_options_that_json_can_hold(monkeypatch):
    monkeypatch.setattr(models, "MODELS", dict(models.MODELS))

    @models.architecture
    def tiny(classes, *, width=(2, 3), bias=False, scale=None, layer=nn.Linear, **more):
        return layer(sum(width), classes, bias=bias)

    assert tiny(classes=4).spec["options"] == {"classes": 4, "width": (2, 3), "bias": False, "scale": None}
    given = {"classes": 4, "width": [5], "bias": True, "scale": 0.5, "depth": 2}
    assert tiny(**given).spec["options"] == given and list(tiny(classes=4).spec["options"]["width"]) == [2, 3]
    assert models.build("digit_net").spec["options"] == {"widths": (6, 12, 12, 12), "classes": 10, "in_channels": 1}
    assert models.build("cnn8", classes=3).spec["options"] == {"classes": 3, "dropout": 0.5}
    with pytest.raises(TypeError, match="classes"):
        tiny()


@pytest.mark.parametrize(
    ("name", "a", "b", "parameters"), [("digit_net", 6, 12, 3_508), ("digit_net_wide", 16, 32, 23_738)]
)
def test_the_digit_nets_have_one_pool_and_a_global_mean(name, a, b, parameters):
    model = shake(models.build(name))
    assert [conv.out_channels for conv in convs(model)] == [a, b, b, b]
    assert all(conv.kernel_size == (3, 3) for conv in convs(model))
    assert count(model) == 9 * (a + a * b + 2 * b * b) + 2 * (a + 3 * b) + b * 10 + 10 == parameters
    for size in (8, 9):
        x = images((1, size, size))
        linear = model.body[-1]
        expected = F.linear(plain(model, x, pools={1}).mean((2, 3)), linear.weight, linear.bias)
        torch.testing.assert_close(model(x), expected, rtol=1e-4, atol=1e-5)
    assert maps(model, (1, 8, 8)) == [(a, 8, 8), (b, 8, 8), (b, 4, 4), (b, 4, 4)]
    other = models.build(name, in_channels=3, classes=4)
    assert convs(other)[0].in_channels == 3 and other.body[-1].out_features == 4


def test_digit_net_takes_four_widths():
    assert str(mq.models.digit_net(widths=(16, 32, 32, 32))) == str(mq.models.digit_net_wide())
    with pytest.raises(ValueError, match=r"digit_net has four convolutions; got widths \(8, 16\)"):
        mq.models.digit_net(widths=(8, 16))


@pytest.mark.parametrize(("size", "side"), [(28, 1), (32, 2), (84, 5), (47, 2)])
def test_conv4_is_four_blocks_that_halve_the_map_and_its_embedding_has_its_channels_times_the_map(size, side):
    embedding = mq.models.conv4(channels=6, in_channels=3, image_size=size).eval()
    classifier = mq.models.conv4(channels=6, in_channels=3, image_size=size, classes=20).eval()
    assert embedding(images((3, size, size))).shape == (2, 6 * side * side)
    assert classifier(images((3, size, size))).shape == (2, 20)
    blocks = 9 * (3 * 6 + 3 * 6 * 6) + 2 * 4 * 6
    assert count(embedding) == blocks and count(classifier) == blocks + 6 * side * side * 20 + 20
    assert not any(isinstance(m, nn.Linear) for m in embedding.modules())


def test_conv4_of_the_papers_gives_64_features_of_omniglot_images():
    model = shake(mq.models.conv4())
    x = images((1, 28, 28))
    assert model(x).shape == (2, 64) and count(model) == 9 * (64 + 3 * 64 * 64) + 2 * 4 * 64
    torch.testing.assert_close(model(x), plain(model, x, pools={0, 1, 2, 3}).flatten(1), rtol=1e-4, atol=1e-4)


def plain_cnn8():
    """The network of the MEBQAT authors' public code, in their order: a pool before each ReLU."""
    layers = [nn.Conv2d(3, 48, 5), nn.MaxPool2d(2), nn.ReLU()]
    blocks = [(48, 64, 1, False), (64, 64, 1, True), (64, 128, 0, False), (128, 128, 1, False), (128, 128, 0, False)]
    for c_in, c_out, padding, pool in blocks:
        layers += [nn.Conv2d(c_in, c_out, 3, padding=padding, bias=False), nn.BatchNorm2d(c_out)]
        layers += [*([nn.MaxPool2d(2)] if pool else []), nn.ReLU()]
    layers += [nn.Dropout(0.5), nn.Conv2d(128, 512, 5, bias=False), nn.ReLU(), nn.Flatten(), nn.Linear(512, 10)]
    return nn.Sequential(*layers)


@pytest.mark.parametrize("training", [False, True])
def test_cnn8_is_the_authors_network(training):
    """No norm and a bias on the first convolution, no norm after the last; the same weights give the same logits."""
    model, reference = shake(mq.models.cnn8()).train(training), plain_cnn8().train(training)
    assert [shape[1:] for shape in maps(mq.models.cnn8(), (3, 40, 40))] == [(n, n) for n in (36, 18, 18, 7, 7, 5, 1)]
    reference.load_state_dict(dict(zip(reference.state_dict(), model.state_dict().values(), strict=True)))
    for count in (1, 2, 5):
        x, outs = images((3, 40, 40), count), []
        for net in (model, reference):
            torch.manual_seed(0)  # for dropout
            outs.append(net(x))
        torch.testing.assert_close(*outs, rtol=0, atol=0)


def test_a_batch_of_one_image_teaches_cnn8():
    """Also at quantized pairs: none of its norms sees a single value, as that of one position would."""
    torch.manual_seed(0)
    model, x = mq.quantize(mq.models.cnn8(), "dorefa", sample=torch.rand(2, 3, 40, 40)).train(), images((3, 40, 40), 1)
    for bits in ("FP", "W2A2", "W1A1"):
        with mq.at(model, bits):
            F.cross_entropy(model(x), torch.tensor([3])).backward()
    grads = [p.grad for p in model.parameters()]
    assert all(grad is not None and grad.isfinite().all() for grad in grads)
    assert len(grads) == 2 * 5 + 7 + 1 + 2  # norms, convolutions, one bias, the linear layer


def test_cnn8_drops_inputs_of_its_last_convolution_and_nothing_else():
    model, seen = mq.models.cnn8(dropout=0.5).train(), {}
    for index, conv in enumerate(convs(model)):
        conv.register_forward_pre_hook(lambda _m, args, index=index: seen.setdefault(index, []).append(args[0]))
    torch.manual_seed(0)
    for _ in range(2):
        model(images((3, 40, 40), 8))
    assert [torch.equal(*seen[index]) for index in range(7)] == [True] * 6 + [False]
    both = (seen[6][0] != 0) & (seen[6][1] != 0)
    assert torch.equal(seen[6][0][both], seen[6][1][both])
    alive = mq.models.cnn8(dropout=0.0).train()
    assert torch.equal(alive(images((3, 40, 40))), alive(images((3, 40, 40))))


def test_preact_resnet20_is_five_times_wide():
    model = mq.models.preact_resnet20()
    block = [(80, 80), (80, 160), (160, 320)]
    expected = [(3, 80, 3, 1)]
    for stage, (c_in, c_out) in enumerate(block):
        stride = 2 if stage else 1
        expected += [(c_in, c_out, 3, stride), (c_out, c_out, 3, 1)]
        expected += [(c_in, c_out, 1, stride)] if stage else []  # where the shape changes
        expected += [(c_out, c_out, 3, 1)] * 4
    found = [(c.in_channels, c.out_channels, c.kernel_size[0], c.stride[0]) for c in convs(model)]
    assert found == expected
    assert len([shape for shape in found if shape[2] == 3]) + 1 == 20  # with the linear layer
    assert sum(p.numel() for p in model.parameters() if p.dim() == 4) == sum(a * b * k * k for a, b, k, _ in expected)
    shapes = maps(mq.models.preact_resnet20(width=0.25), (3, 32, 32))
    assert [shapes[i][1] for i in (0, -1)] == [32, 8] and {shape[1] for shape in shapes} == {32, 16, 8}


def test_a_preact_block_adds_its_convolutions_to_the_shortcut_of_its_activation():
    """Pre-activation: bn, relu, conv, bn, relu, conv; the shortcut is the input, or 1 x 1 of its activation."""
    model = shake(mq.models.preact_resnet20(width=0.5)).double()
    x = images((8, 8, 8)).double()
    for block, c_in in ((model.body[0], 8), (model.body[3], 8)):
        h = F.relu(block.bn1(x))
        inner = block.conv2(F.relu(block.bn2(block.conv1(h))))
        expected = inner + (x if block.skip is None else block.skip(h))
        torch.testing.assert_close(block(x), expected, rtol=1e-12, atol=1e-12)
        assert (block.skip is None) == (block is model.body[0]) and block.conv1.in_channels == c_in


def plain_resnet20(model, x):
    """He et al., CVPR 2016, section 4.2, written out: a ReLU after each sum, and shortcuts without parameters."""

    def normed(conv, norm, h):
        h = F.conv2d(h, conv.weight, None, conv.stride, conv.padding)
        return F.batch_norm(h, norm.running_mean, norm.running_var, norm.weight, norm.bias)

    h = normed(model.stem[0], model.stem[1], x).relu()
    for block in list(model.body)[:9]:
        inner = normed(block.conv2, block.bn2, normed(block.conv1, block.bn1, h).relu())
        shortcut = torch.zeros_like(inner)
        shortcut[:, : h.shape[1]] = h if h.shape == inner.shape else h[:, :, ::2, ::2]
        h = (inner + shortcut).relu()
    return F.linear(h.mean((2, 3)), model.body[-1].weight, model.body[-1].bias)


def test_resnet20_is_the_paper_s_with_identity_shortcuts():
    """269,722 parameters: 1 x 1 convolutions with batch norm as shortcuts (option B) would make them 272,474."""
    model = shake(mq.models.resnet20())
    block = [(16, 16), (16, 32), (32, 64)]
    expected = [(3, 16, 1)]
    for c_in, c_out in block:
        expected += [(c_in, c_out, 1 + (c_in != c_out)), *[(c_out, c_out, 1)] * 5]
    assert [(c.in_channels, c.out_channels, c.stride[0]) for c in convs(model)] == expected
    assert all(c.kernel_size == (3, 3) for c in convs(model)) and len(expected) + 1 == 20  # with the linear layer
    weights, channels = 9 * sum(a * b for a, b, _ in expected), sum(b for _, b, _ in expected)
    assert count(model) == weights + 2 * channels + 64 * 10 + 10 == 269_722
    assert 269_722 + 16 * 32 + 32 * 64 + 2 * (32 + 64) == 272_474
    for size in (32, 9):
        x = images((3, size, size))
        torch.testing.assert_close(model(x), plain_resnet20(model, x), rtol=1e-4, atol=1e-4)
    assert {shape[1:] for shape in maps(model, (3, 32, 32))} == {(n, n) for n in (32, 16, 8)}


@pytest.mark.parametrize("quantizer", ["dorefa", "lsq"])
def test_no_relu_before_a_shortcut_of_resnet20_is_left_out(quantizer):
    """Where all layers that read it clip at zero, an `InputReLU` does nothing; a sum would see the difference."""
    torch.manual_seed(0)
    x = images((3, 16, 16), 8)
    model = shake(mq.models.resnet20())
    mq.quantize(model, quantizer, sample=x)
    outs = []
    for _ in range(2):
        with mq.at(model, "W2A2", norm_stats="running"), torch.no_grad():
            outs.append(model(x))
        for name, module in list(model.named_modules()):
            if isinstance(module, nn.ReLU):
                model.set_submodule(name, nn.ReLU())
    assert torch.equal(*outs) and outs[0].std() > 0


def test_mobilenet_v2_keeps_a_4_by_4_map_of_32_by_32_images_and_torchvisions_parameters():
    model, theirs = mq.models.mobilenet_v2(), torchvision.models.mobilenet_v2(num_classes=10)
    assert [p.shape for p in model.parameters()] == [p.shape for p in theirs.parameters()]
    shapes = maps(model, (3, 32, 32))
    assert len(shapes) == 52 and shapes[0][1:] == (32, 32) and shapes[-1] == (1280, 4, 4)
    strides = [c.stride[0] for c in convs(model)]
    assert strides.count(2) == 3 and [c.stride[0] for c in convs(theirs)].count(2) == 5
    assert [s for s, t in zip(strides, (c.stride[0] for c in convs(theirs)), strict=True) if s != t] == [1, 1]


@pytest.mark.parametrize("name", SMALL)
def test_channels_last_lays_out_the_weights_and_keeps_the_values(name):
    options, image, _ = SMALL[name]
    model, x = models.build(name, **options).eval(), images(image)
    expected = model(x)
    assert models.channels_last(model) is model
    assert all(c.weight.is_contiguous(memory_format=torch.channels_last) for c in convs(model))
    torch.testing.assert_close(model(x), expected, rtol=1e-4, atol=1e-5)


def test_coordinates_become_waves_of_fixed_frequencies():
    """cos and sin of pi f x: a frequency f counts the waves across a picture, which is 2 wide."""
    one, other = models.coordinate_net(pairs=5, scale=2.0), models.coordinate_net(width=8, pairs=5, scale=4.0)
    waves, x = one.stem[0], images((2,), 7)
    assert torch.equal(2 * waves.frequencies, other.stem[0].frequencies)
    assert "stem.0.frequencies" in one.state_dict() and list(waves.parameters()) == []
    angles = torch.pi * (x[:, :1] * waves.frequencies[0] + x[:, 1:] * waves.frequencies[1])
    torch.testing.assert_close(waves(x), torch.cat([angles.sin(), angles.cos()], 1), rtol=1e-5, atol=1e-5)
    drawn = models.coordinate_net(pairs=2000).stem[0].frequencies
    assert drawn.std().item() == pytest.approx(6, rel=0.05) and abs(drawn.mean().item()) < 0.3


def test_coordinate_net_is_three_normed_layers_and_a_linear_one():
    model = shake(models.coordinate_net(width=16, pairs=4, outputs=2))
    layers = [m for m in model.modules() if isinstance(m, nn.Linear)]
    norms = [m for m in model.modules() if isinstance(m, nn.BatchNorm1d)]
    x = images((2,), 5)
    h = model.stem[0](x)
    for layer, norm in zip(layers, norms, strict=False):
        h = norm(F.linear(h, layer.weight)).relu()
    torch.testing.assert_close(model(x), F.linear(h, layers[3].weight, layers[3].bias))
    assert count(model) == 8 * 16 + 2 * 16 * 16 + 3 * 2 * 16 + 16 * 2 + 2
