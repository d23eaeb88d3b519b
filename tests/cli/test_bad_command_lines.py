"""Command lines that cannot be: each is one line that names what is wrong, and exit status 2."""

import shlex

import numpy as np
import pytest
import torch
from PIL import Image

from mebqat_lite import models, quantize, save_model
from mebqat_lite.cli import main

TRAIN = "train --steps 1 --warm-steps 0 --no-tensorboard --out x.safetensors"
TEST = "evaluate --checkpoint m.safetensors --bits W2A2 --norm batch"
NEW = "evaluate --checkpoint pn.safetensors --bits W2A2 --episodes 2"
COMPARE = "compare --seeds 1 --engine serial --methods"
LARGE = 10**22

# A line each: the command, " -> ", and words of the message.
BAD = f"""
{TRAIN} --steps {LARGE} -> --steps must be at most 2,147,483,647, not {LARGE}
{TRAIN} --batch-size {LARGE} -> --batch-size must be at most 2,147,483,647
{TRAIN} --save-every {LARGE} -> --save-every must be at most 2,147,483,647
{TRAIN} --set epochs=3 -> give steps or epochs, not both
train --warm-steps 0 --set steps={LARGE} -> steps must be at most 2,147,483,647, not {LARGE}
train --warm-steps 0 --set steps=0 -> steps must be at least 1, not 0
{TRAIN} --set pad=-1 -> pad must be at least 0, not -1
{TRAIN} --set epochs=-1 -> give steps or epochs, not both
{TRAIN} --set weight_decay=-0.5 -> weight_decay must be at least 0, not -0.5
{TRAIN} --set clip=-1 -> clip must be at least 0, not -1
{TRAIN} --lr nan -> lr must be at least 0, not nan
{TRAIN} --seed -1 -> --seed must be at least 0, not -1
{TRAIN} --seed {2**31} -> --seed must be at most 2,147,483,647, not 2147483648
{TRAIN} --m 0 -> --m must be at least 1, not 0
{TRAIN} --warm-steps -2 -> --warm-steps must be at least 0, not -2
{TRAIN} --set schedule=milestones --set milestones=1 -> milestones are fractions of the steps, as (0.5, 0.75), not (1,)
{TRAIN} --set schedule=milestones --set milestones=(150,250) -> milestones are fractions of the steps
{TRAIN} --set schedule=milestones --set milestones=soon -> as (0.5, 0.75), not ('soon',)
{TRAIN} --set exclude=3.5 -> exclude must hold some of the widths (1, 2, 3, 4, 5, 6, 7, 8, 16), not (3.5,)
{TRAIN} --set exclude=[[1]] -> exclude must hold some of the widths
{TRAIN} --set exclude=None -> exclude must hold some of the widths
{TRAIN} --set bits=5 -> 5 is no bitwidth pair; write W2A4
{TRAIN} --set flip=1 -> flip must be True or False, not 1
{TRAIN} --set steps=4 -> steps is given twice, once as steps=4: give it once
{TRAIN} --set m=3 --m 4 -> m is given twice, once as m=3: give it once
{TRAIN} --set m=3 --set m=4 -> m is given twice, once as m=4: give it once
{TRAIN} --set seed=5 -> --set seed=5: give --seed instead
{TRAIN} --set steps -> expected NAME=VALUE, not 'steps'
{TRAIN} --bits W2A2 -> mebqat_in_turn does not use bits with this recipe: leave it out
{TRAIN} --method fp --m 3 -> fp does not use m with this recipe
{TRAIN} --method fp --teacher next -> fp does not use teacher with this recipe
{TRAIN} --method ptq_mse --warm-steps 5 -> ptq_mse does not use warm_steps with this recipe
{TRAIN} --method qat --bits W2A2 --m 3 -> qat does not use m with this recipe
{TRAIN} --method adabits --set exclude=3 -> adabits does not use exclude with this recipe
{TRAIN} --set ways=3 --set queries=2 -> mebqat_in_turn does not use queries, ways with this recipe
{TRAIN} --set sandwich=False -> mebqat_in_turn does not use sandwich with this recipe
{TRAIN} --set gamma=0.5 -> mebqat_in_turn does not use gamma with this recipe
{TRAIN} --recipe glyphs-pn --method mebqat_pn --batch-size 8 -> mebqat_pn does not use batch_size with this recipe
{TRAIN} --recipe glyphs-pn --method mebqat_pn --set pad=2 -> mebqat_pn does not use pad with this recipe
{TRAIN} --recipe glyphs-maml --method mebqat_maml --m 3 -> mebqat_maml does not use m with this recipe
{TRAIN} --recipe glyphs-maml --method mebqat -> mebqat learns fixed classes, and 126 classes of glyphs are
{TRAIN} --data classes:pets -> mebqat_in_turn learns fixed classes, and 1 classes of pets are only in its test part
{TRAIN} --data digits,count=-1 -> no stratified subset of -1 of the 1000 training images
{TRAIN} --data digits,count=abc -> count must be a whole number, in 'digits,count=abc'
{TRAIN} --data digits,count=100,count=200 -> each option of a dataset once, not 'count=100,count=200'
{TRAIN} --data folder:pets,size=0 -> size must be a whole number of pixels from 1 to 32,768, not 0
{TRAIN} --data folder:pets,size=-8 -> size must be a whole number of pixels from 1 to 32,768, not -8
{TRAIN} --data folder:pets,size=8.5 -> size must be a whole number, in 'folder:pets,size=8.5'
{TRAIN} --data folder:pets,size=1 -> the model digit_net cannot take images of 1 x 1 x 1 (channels x height x width)
{TRAIN} --model conv4 -> the model conv4 cannot take images of 1 x 8 x 8
{TRAIN} --model cnn8 -> the model cnn8 cannot take images of 1 x 8 x 8
{TRAIN} --data "" -> --data is empty: give it a value, or leave it out
{TRAIN} --model "" -> --model is empty
{TRAIN} --method "" -> --method is empty
{TRAIN} --recipe gone -> no set-up 'gone'; known: digits
{TRAIN} --out pets/a/0.png/x -> pets/a/0.png is a file, and a folder is needed there
evaluate --checkpoint m.safetensors --layers "" -> --layers is empty: give it a value, or leave it out
evaluate --checkpoint m.safetensors --layers *=W2A2,*=W4A4 -> --layers takes each layer once (* for the rest)
evaluate --checkpoint m.safetensors --layers body.0.0=W2A2,*=W2A2,body.0.0=W2A2 -> --layers takes each layer once
evaluate --checkpoint m.safetensors --layers =W2A2 -> no quantized layer ['']
{TEST} --seed -1 -> --seed must be at least 0, not -1
{TEST} --ways 3 -> classifier of fixed classes: it has no ways
{TEST} --data folder:rgb -> m.safetensors cannot take images of 3 x 8 x 8
{TEST} --data classes:pets,whole=1 --part train -> this part of the data is empty
{TEST} --json m.safetensors/x.json -> m.safetensors is a file, and a folder is needed there
{TEST} --json x.csv --save ./x.csv -> --json and --save are the same: give different names
evaluate --checkpoint gone -> no checkpoint gone in .
{NEW} --seed 1 -> --seed is for classifiers of fixed classes; the classes of the parts are those of the training
{NEW} --episodes 0 -> --episodes must be at least 1, not 0
{NEW} --data folder:pets,size=8 -> leave out size=8
{NEW} --data digits --ways 2 -> pn.safetensors cannot take images of 1 x 8 x 8
{NEW} --part val --data folder:pets -> this part of the data is empty
export --checkpoint m.safetensors --to "" -> --to is empty
export --checkpoint m.safetensors --to packed --bits W2A2 --out pets/a/0.png/x -> pets/a/0.png is a file, and a folder
{COMPARE} mebqat --bits W2A2 -> --bits is for qat, pn_qat, fomaml_qat: name one, or leave it out
{COMPARE} mebqat --qat-lrs 0.1 -> --qat-lrs is for qat, pn_qat, fomaml_qat
{COMPARE} mebqat,ptq_mse --set ways=3 -> none of mebqat, ptq_mse uses ways: leave it out
{COMPARE} ptq_mse --m 3 -> none of ptq_mse uses m
{COMPARE} ptq_mse --budget steps --m 3 -> none of ptq_mse uses m
{COMPARE} ptq_mse --budget steps --steps 3 -> none of ptq_mse uses steps
{COMPARE} mebqat+ways=3 -> mebqat+ways=3: mebqat does not use ways: leave it out
{COMPARE} ptq_mse+lr=3 --budget steps -> ptq_mse+lr=3: ptq_mse does not use lr
{COMPARE} ptq_mse+quantizer=sat -> ptq_mse+quantizer=sat: ptq_mse does not use quantizer: leave it out
{COMPARE} fomaml_ptq_lsq+quantizer=sat --recipe glyphs-maml -> fomaml_ptq_lsq+quantizer=sat: fomaml_ptq_lsq does
{COMPARE} fomaml_ptq_mse+quantizer=sat --recipe glyphs-maml -> fomaml_ptq_mse+quantizer=sat: fomaml_ptq_mse does
{COMPARE} mebqat+bits=W3A3 -> mebqat+bits=W3A3: mebqat does not use bits
{COMPARE} qat+bits=W3A3 --set bits=W2A2 -> none of qat+bits=W3A3 uses bits
{COMPARE} qat+start=mebqat -> qat+start=mebqat starts from mebqat: add that to the methods of the comparison
{COMPARE} mebqat+seed=3 -> mebqat+seed=3: mebqat does not use seed
{COMPARE} mebqat+m=3+m=4 -> m is given twice, once as m=4
{COMPARE} mebqat --set seed=4 -> --set seed=4: give --seeds instead
{COMPARE} mebqat --data glyphs -> mebqat learns fixed classes, and 126 classes of glyphs are only in its test part
{COMPARE} mebqat --model conv4 -> the model conv4 cannot take images of 1 x 8 x 8
{COMPARE} mebqat --pairs "" -> --pairs is empty
{COMPARE} qat --qat-lrs -1 -> --qat-lrs takes numbers above 0, each once, as 0.003,0.01, not '-1'
{COMPARE} qat --qat-lrs nan -> --qat-lrs takes numbers above 0, each once
{COMPARE} qat --qat-lrs , -> --qat-lrs takes numbers above 0, each once
{COMPARE} qat --qat-lrs 0.1,0.10 -> --qat-lrs takes numbers above 0, each once
{COMPARE} mebqat --retries -1 -> --retries must be at least 0, not -1
{COMPARE} mebqat --jobs 0 -> --jobs must be at least 1, not 0
{COMPARE} mebqat --address x:1 -> only the engine dask takes an address
{COMPARE} mebqat --out m.safetensors -> --out m.safetensors: m.safetensors is a file, and a folder is needed there
demo --jobs 0 -> --jobs must be at least 1, not 0
demo --seeds {LARGE} -> --seeds must be at most 2,147,483,647
demo --out m.safetensors -> m.safetensors is a file, and a folder is needed there
demo --out here --ship here -> --out and --ship are the same
benchmark --episodes 0 -> --episodes must be at least 1, not 0
benchmark --out m.safetensors/b -> m.safetensors is a file, and a folder is needed there
benchmark --set "" -> --set is empty
benchmark gone -> no checkpoint gone in .
assignments --out m.safetensors -> m.safetensors is a file, and a folder is needed there
assignments --source gone -> no assignments in gone
check-submission gone -> gone is no notebook
grade pets --variant -1 -> --variant must be at least 0, not -1
grade pets --student "" -> --student is empty
grade pets --jobs 0 -> --jobs must be at least 1, not 0
grade pets --out m.safetensors/g -> m.safetensors is a file, and a folder is needed there
test gone -> no stage 'gone'; known: lint, format, types, tests, notebooks, browser, quick
test lint types -x -> -x: no stage here takes options of pytest
"""
LINES = [line.split(" -> ", 1) for line in BAD.strip().splitlines()]


@pytest.fixture(scope="module")
def place(tmp_path_factory):
    """A folder with a classifier, a few-shot network, and some pictures."""
    folder = tmp_path_factory.mktemp("place")
    torch.manual_seed(0)
    digits = quantize(models.digit_net(widths=(4, 4, 4, 4)), sample=torch.rand(8, 1, 8, 8))
    save_model(digits, folder / "m.safetensors", data="digits", seed=0, method="mebqat")
    conv = quantize(models.conv4(channels=4, classes=None), "lsq", sample=torch.rand(8, 1, 28, 28))
    setup = {"recipe": {"quantizer": "lsq", "ways": 3, "queries": 1}}
    save_model(conv, folder / "pn.safetensors", data="glyphs", seed=0, method="mebqat_pn", setup=setup)
    rng = np.random.default_rng(0)
    for name, classes, shape in (("pets", "abc", (8, 8)), ("rgb", "ab", (8, 8, 3))):
        for label in classes:
            (folder / name / label).mkdir(parents=True)
            for number in range(12):
                pixels = rng.integers(0, 256, shape, np.uint8)
                Image.fromarray(pixels).save(folder / name / label / f"{number}.png")
    return folder


@pytest.fixture(autouse=True)
def there(place, monkeypatch):
    monkeypatch.chdir(place)
    monkeypatch.setenv("MEBQAT_DATA", str(place / "downloads"))


def test_there_are_many():
    assert len(LINES) > 100 and len({command for command, _ in LINES}) == len(LINES)


@pytest.mark.parametrize(("command", "message"), LINES, ids=[command[:90] for command, _ in LINES])
def test_it_is_one_line_that_says_what_is_wrong_and_nothing_is_left(command, message, capsys, place):
    before = {path.name for path in place.iterdir()} - {"downloads"}
    assert main(shlex.split(command)) == 2
    printed = capsys.readouterr()
    assert message in printed.err and printed.err.count("\n") == 1 and not printed.out
    assert {path.name for path in place.iterdir()} - {"downloads"} == before
