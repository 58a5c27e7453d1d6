"""What is personal, by the policy alone."""

from __future__ import annotations

import orjson
import pytest
from hypothesis import given
from hypothesis import strategies as st

from agentfield.errors import InvalidInputError
from agentfield.privacy import KINDS, RECEIPT, VIEW, Encryption, PrivacyPolicy, Vault, vault_of
from agentfield.scope import GLOBAL, Scope
from agentfield.subject import Subjects
from tests.unit.strategies import keys

USER = Scope("session", "user-1")


def test_nothing_is_personal_unless_somebody_says_so() -> None:
    policy = PrivacyPolicy()
    assert not policy
    assert str(policy) == "nothing"
    assert policy.vault(USER, "k") is None


def test_a_personal_scope_has_one_vault_an_id_and_other_scopes_have_none() -> None:
    policy = PrivacyPolicy.of(["session"])
    assert policy.vault(USER, "a") == policy.vault(USER, "b") == Vault(USER, None)
    assert policy.vault(Scope("session", "user-2"), "a") == Vault(Scope("session", "user-2"), None)
    assert policy.vault(GLOBAL, "a") is policy.vault(Scope("actor", "user-1"), "a") is None


def test_a_key_that_matches_a_pattern_has_a_vault_of_its_own_in_every_scope() -> None:
    policy = PrivacyPolicy.of(["session"], ["user_*_email"])
    for scope in (GLOBAL, USER):
        assert policy.vault(scope, "user_1_email") == Vault(scope, "user_1_email")
    assert policy.vault(GLOBAL, "user_1_name") is None
    assert policy.vault(USER, "user_1_name") == Vault(USER, None)


def test_the_record_of_erasures_is_never_personal() -> None:
    policy = PrivacyPolicy.of(KINDS, ["*"])
    assert policy.vault(GLOBAL, f"{RECEIPT}1") is policy.vault(GLOBAL, f"{VIEW}timeline") is None
    assert policy.vault(GLOBAL, "erasure") == Vault(GLOBAL, "erasure")


@pytest.mark.parametrize(
    ("scopes", "patterns", "said"),
    [
        (["global"], [], "cannot be personal as a whole"),
        (["sessions"], [], "cannot be personal as a whole"),
        ("session", [], "lists of texts"),
        ([], "a_*", "lists of texts"),
        ([], ["a>b"], "pattern"),
        ([], [""], "pattern"),
    ],
)
def test_a_policy_that_means_nothing_is_refused(scopes: list[str], patterns: list[str], said: str) -> None:
    with pytest.raises(InvalidInputError, match=said):
        PrivacyPolicy.of(scopes, patterns)


@given(st.sets(st.sampled_from(KINDS)), st.lists(st.sampled_from(["a_*", "b", "*"]), unique=True))
def test_a_policy_is_the_same_after_it_was_stored(scopes: set[str], patterns: list[str]) -> None:
    policy = PrivacyPolicy.of(scopes, patterns)
    assert PrivacyPolicy.load(orjson.loads(orjson.dumps(policy.fields()))) == policy


@pytest.mark.parametrize(
    "fields", [None, [], {}, {"v": 2, "scopes": [], "patterns": []}, {"v": 1, "scopes": 5}, {"v": 1}]
)
def test_a_policy_of_another_version_is_refused_and_never_taken_for_none(fields: object) -> None:
    with pytest.raises(InvalidInputError, match="upgrade"):
        PrivacyPolicy.load(fields)


@given(keys, keys)
def test_no_two_vaults_have_the_same_place(one: str, other: str) -> None:
    subjects = Subjects("n")
    places = {Vault(scope, key).tokens(subjects) for scope in (GLOBAL, USER) for key in (None, one, other)}
    assert len(places) == 2 * len({None, one, other})


def test_an_event_leads_to_the_vault_of_its_key_whatever_the_policy_says_by_now() -> None:
    for vault in (Vault(USER, None), Vault(USER, "k")):
        assert vault_of(Encryption.of(Encryption("f", vault.per).fields()), USER, "k") == vault


@pytest.mark.parametrize(
    "fields", [None, "f", {}, {"key": "f"}, {"key": "", "per": "key"}, {"key": "f", "per": "user"}]
)
def test_an_encryption_that_is_none_is_refused(fields: object) -> None:
    with pytest.raises(InvalidInputError, match="encryption"):
        Encryption.of(fields)
