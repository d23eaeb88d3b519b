"""What the prose says is measured: the quick claims of ``claims.toml`` here, the slow ones by ``claims.py --slow``."""

import pytest
from claims import claims, prose

CLAIMS = claims()
QUICK = [claim for claim in CLAIMS if not claim.slow]
by_words = pytest.mark.parametrize("claim", CLAIMS, ids=lambda claim: claim.says[:40])


@by_words
def test_the_words_stand_on_the_page(claim):
    assert claim.says in prose(claim.page)


@by_words
def test_the_tolerance_comes_from_a_spread_and_could_fail(claim):
    assert claim.spread and 0 < claim.tolerance <= 5


@pytest.mark.parametrize("claim", QUICK, ids=lambda claim: claim.says[:40])
def test_a_quick_claim_holds(claim, tmp_path):
    assert claim.measured(tmp_path / "out.json") == pytest.approx(claim.value, abs=claim.tolerance)
