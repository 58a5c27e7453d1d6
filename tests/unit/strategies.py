"""What Hypothesis draws names from: all of Unicode, and small alphabets in which the special cases are frequent."""

from hypothesis import strategies as st

# Everything but control characters (Cc) and surrogates (Cs).
ANY_CHARACTER = st.characters(exclude_categories=("Cc", "Cs"))
KEY_CHARACTER = st.characters(exclude_categories=("Cc", "Cs"), exclude_characters="*>")


def within(text: str, limit: int) -> bool:
    return 0 < len(text.encode()) <= limit


keys = st.one_of(
    st.text(KEY_CHARACTER, min_size=1, max_size=60),
    st.text("_", min_size=1, max_size=20),
    st.text("ab_", min_size=1, max_size=60),
    st.text("aZ09_-/.=$ \u00e95F", min_size=1, max_size=40),
    st.lists(st.text(KEY_CHARACTER, max_size=4), min_size=14, max_size=19).map("_".join),
).filter(lambda key: within(key, 512))

scope_ids = st.one_of(
    st.text(ANY_CHARACTER, min_size=1, max_size=40),
    st.text("aZ09_-/.=*> \u00e9", min_size=1, max_size=40),
).filter(lambda text: within(text, 256))

patterns = st.one_of(
    st.text("ab_*", min_size=1, max_size=12),
    st.lists(st.sampled_from(["a", "b", "", "*", "a*", "*b", "é."]), min_size=1, max_size=19).map("_".join),
    st.text(st.one_of(KEY_CHARACTER, st.just("*"), st.just("_")), min_size=1, max_size=30),
).filter(lambda text: within(text, 512))
