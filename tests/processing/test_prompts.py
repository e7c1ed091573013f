"""Every image has one mark and every mark one image; whatever cannot be answered is refused with a reason."""

import numpy as np
import pytest
from hypothesis import given, settings
from hypothesis import strategies as st

from sparsevlm_jax.processing import IMAGE_MARK, LLAVA_1_5, VICUNA_V1, PromptError, read_prompt, render
from sparsevlm_jax.processing.prompts import read_raw
from tests.tiny import tiny_tokenizer

TOKENIZER = tiny_tokenizer()
IMAGE, TEXT_ONLY_TEMPLATE = {"type": "image"}, "{% for m in messages %}[{{ m['role'] }}]{{ m['content'] }}{% endfor %}"


def text(words: str) -> dict:
    return {"type": "text", "text": words}


def user(*parts) -> dict:
    return {"role": "user", "content": list(parts)}


def rendered(prompt, images=(), template=LLAVA_1_5) -> str:
    return render(read_prompt(prompt, images), TOKENIZER, template)


def test_a_question_takes_the_form_of_llava():
    assert rendered("What is it?", ["a.png"]) == "USER: <image>\nWhat is it? ASSISTANT:"
    assert rendered("What is it?") == "USER: What is it? ASSISTANT:"


def test_vicuna_v1_has_the_system_sentence_and_ends_answers():
    system = (
        "A chat between a curious user and an artificial intelligence assistant. "
        "The assistant gives helpful, detailed, and polite answers to the user's questions. "
    )
    assert rendered("What is it?", ["a.png"], VICUNA_V1) == system + "USER: <image>\nWhat is it? ASSISTANT:"
    chat = [user(IMAGE, text("What?")), {"role": "assistant", "content": "A cat."}, user(text("Sure?"))]
    expected = system + "USER: <image>\nWhat? ASSISTANT: A cat.</s>USER: Sure? ASSISTANT:"
    assert rendered(chat, ["a.png"], VICUNA_V1) == expected


def test_a_chat_keeps_its_turns_and_its_own_system_words():
    chat = [
        {"role": "system", "content": "Be brief."},
        user(IMAGE, text("What?")),
        {"role": "assistant", "content": "A cat."},
        user(text("And here?"), IMAGE),
    ]
    expected = "USER: <image>\nWhat? ASSISTANT: A cat. USER: <image>\nAnd here? ASSISTANT:"
    assert rendered(chat, ["a.png", "b.png"]) == "Be brief. " + expected
    assert rendered(chat, ["a.png", "b.png"], VICUNA_V1).startswith("Be brief. USER:")


def test_marks_in_a_text_stay_where_they_stand():
    prompt = "Is <image> the same place as <image>?"
    assert rendered(prompt, ["a.png", "b.png"]) == f"USER: {prompt} ASSISTANT:"


def test_images_without_marks_go_in_front():
    assert rendered("Compare.", ["a.png", "b.png"]) == "USER: <image>\n<image>\nCompare. ASSISTANT:"
    assert rendered([user(text("Compare."))], ["a.png"]) == "USER: <image>\nCompare. ASSISTANT:"


@pytest.mark.parametrize("key", ["image", "path", "url"])
def test_messages_may_carry_their_images(key):
    conversation = read_prompt([user({"type": "image", key: "a.png"}, text("What?"))])
    assert conversation.images == ["a.png"]
    assert render(conversation, TOKENIZER, LLAVA_1_5) == "USER: <image>\nWhat? ASSISTANT:"


def test_images_are_not_taken_from_two_places():
    with pytest.raises(PromptError, match=r"carry 1 images of their own, and 2 more"):
        read_prompt([user({"type": "image", "image": "a.png"}, text("What?"))], ["b.png", "c.png"])


def test_a_template_of_a_text_only_chat_gets_texts():
    assert rendered([user(IMAGE, text("What?"))], ["a.png"], TEXT_ONLY_TEMPLATE) == "[user]<image>\nWhat?"


def test_a_raw_prompt_is_left_alone_but_for_missing_marks():
    whole = "USER: <image>\nWhat? ASSISTANT:"
    assert read_raw(whole, ["a.png"]) == whole
    assert read_raw("USER: What? ASSISTANT:", ["a.png"]) == "<image>\nUSER: What? ASSISTANT:"
    with pytest.raises(PromptError, match="a raw prompt is one text"):
        read_raw([user(text("What?"))])


@pytest.mark.parametrize(
    ("prompt", "images", "message"),
    [
        ("<image> and <image>?", 1, r"2 <image> marks, got 1 images"),
        ("<image>?", 2, r"1 <image> mark, got 2 images"),
        ("what does <image> mean in HTML?", 0, r"1 <image> mark, got 0 images \(a literal <image> in a text"),
        ([user(IMAGE, text("Is <image> a tag?"))], 1, r"2 <image> marks, got 1 images"),
        ([user(IMAGE, IMAGE, text("What?"))], 1, r"2 <image> marks, got 1 images"),
        ([user(IMAGE, {"type": "image", "image": "a.png"}, text("Both?"))], 0, r"2 <image> marks, got 1 images"),
    ],
)
def test_marks_and_images_must_be_as_many(prompt, images, message):
    with pytest.raises(PromptError, match=message):
        read_prompt(prompt, ["a.png"] * images)


@pytest.mark.parametrize("prompt", ["", " \n", "<image>", [user(IMAGE)], [user(text("Hm?")), user(IMAGE, text(" "))]])
def test_a_prompt_without_words_is_refused(prompt):
    images = ["a.png"] * (IMAGE_MARK in str(prompt) or "'image'" in str(prompt))
    with pytest.raises(PromptError, match="no words"):
        read_prompt(prompt, images)


@pytest.mark.parametrize(
    ("prompt", "message"),
    [
        ([], "got no message"),
        ([{"role": "assistant", "content": "Hello."}], "last message to be the user's, got assistant"),
        ([{"role": "robot", "content": "Hello."}], "a role of system, user, assistant"),
        (["Hello."], "expected a message"),
        ([{"role": "user"}], "a text or a list of parts, got None"),
        ([user({"type": "video", "video": "a.mp4"})], "of type 'text', with its text, 'image' or 'image_url'"),
        ([user({"type": "text"})], "of type 'text', with its text, 'image' or 'image_url'"),
        ([user("Hello.")], "of type 'text', with its text, 'image' or 'image_url'"),
    ],
)
def test_a_malformed_chat_is_refused(prompt, message):
    with pytest.raises(PromptError, match=message):
        read_prompt(prompt)


SURROGATE = "What \ud83d?"


@pytest.mark.parametrize(
    ("prompt", "message"),
    [
        (None, "a question .* or a list of chat messages as prompt, got None"),
        ({"role": "user", "content": "What?"}, "list of chat messages as prompt, got {"),
        (b"What?", "as prompt, got b'What"),
        (3, "as prompt, got 3"),
        (np.array(["What?"]), "as prompt, got an array of <U5, shape"),
        ([{"role": np.array(["user", "user"]), "content": "What?"}], "a role of system, user, assistant, got"),
        ([{"role": ["user"], "content": "What?"}], "a role of system, user, assistant, got"),
        ([{"role": "user", "content": b"What?"}], "a text or a list of parts, got b'What"),
        ([{"role": "user", "content": {"type": "text"}}], "a text or a list of parts, got {"),
        ([{"role": "user", "content": 7}], "a text or a list of parts, got 7"),
        ([user({"type": np.zeros(3)})], "of type 'text'"),
        ([user({"type": "text", "text": b"What?"})], "of type 'text'"),
        ([user({"type": "image_url", "image_url": 3})], "of type 'text'"),
        ([user({"type": "image_url", "image_url": {"href": "a.png"}})], "of type 'text'"),
        (SURROGATE, r"half of a surrogate pair \(U\+D83D\) at character 6"),
        ([user(text(SURROGATE))], r"half of a surrogate pair \(U\+D83D\)"),
        ([[{"role": "user"}]], "a role of system"),
    ],
    ids=str,
)
def test_what_is_no_prompt_is_refused_and_what_is_expected_is_named(prompt, message):
    with pytest.raises(PromptError, match=message):
        read_prompt(prompt)
    with pytest.raises(PromptError):
        read_raw(prompt)


def test_an_error_does_not_repeat_a_whole_prompt():
    for prompt in (
        [{"role": "x" * 10**5}],
        [user({"type": "video", "video": "x" * 10**5})],
        b"x" * 10**5,
        {"x": ["y"] * 10**5},
    ):
        with pytest.raises(PromptError) as caught:
            read_prompt(prompt)  # pyright: ignore[reportArgumentType]
        assert len(str(caught.value)) < 300


@pytest.mark.parametrize("url", [{"url": "data:image/png;base64,"}, "data:image/png;base64,"], ids=["table", "text"])
def test_a_part_in_the_form_of_openai_carries_its_image(url):
    conversation = read_prompt([user({"type": "image_url", "image_url": url}, text("What?"))])
    assert conversation.images == ["data:image/png;base64,"]
    assert render(conversation, TOKENIZER, LLAVA_1_5) == "USER: <image>\nWhat? ASSISTANT:"


JSON = st.recursive(
    st.none() | st.booleans() | st.integers() | st.floats() | st.text(max_size=3) | st.binary(max_size=3),
    lambda inner: (
        st.lists(inner, max_size=3)
        | st.dictionaries(
            st.sampled_from(["role", "content", "type", "text", "image", "image_url", "url"]) | st.integers(), inner
        )
        | st.fixed_dictionaries({"role": st.just("user"), "content": inner})
        | st.fixed_dictionaries({"type": st.sampled_from(["text", "image", "image_url"]), "text": inner})
    ),
    max_leaves=12,
)


@settings(max_examples=300)
@given(JSON | st.lists(JSON, max_size=3), st.lists(st.just("a.png"), max_size=2))
def test_any_prompt_renders_or_is_this_librarys_error(prompt, images):
    try:
        rendered(prompt, images)
    except PromptError as error:
        assert len(str(error)) < 600


def test_a_template_that_loses_images_or_fails_is_named():
    losing = "{{ messages[0]['content'] | selectattr('type', 'equalto', 'text') | map(attribute='text') | join }}"
    with pytest.raises(PromptError, match="template wrote 0 <image> marks for 1 images"):
        rendered("What?", ["a.png"], losing)
    for broken in ("{{ raise_exception('roles must alternate') }}", "{% for", "{{ messages[9]['type'] }}"):
        with pytest.raises(PromptError, match="the checkpoint's chat template fails on this chat"):
            rendered("What?", template=broken)


@pytest.mark.parametrize(
    "template",
    [
        "{% for m in messages %}{{ m.role }}: {% endfor %}A:",
        "{% for m in messages %}{% for p in m[['content'][0]] %}{{ p.text }}{% endfor %}{% endfor %}A:",
        "{{ messages[0].content[0].text }}",
    ],
)
def test_a_template_that_loses_the_question_is_named(template):
    with pytest.raises(PromptError, match="leaves out the words of the last message: 'What is it"):
        rendered([user(text("Hm?")), user(text("What is it?"))], template=template)


@pytest.mark.parametrize("change", ["trim", "upper", "replace('\n', ' ')", "tojson", "replace('  ', ' ')"])
def test_a_template_may_trim_capitalise_and_quote_the_question(change):
    template = "{{ messages[0].content[0].text | " + change + " }}"
    assert rendered("  What is\u00e9  'it'? ", template=template)


@pytest.mark.parametrize("read", ["m.get('content')", "m['content'][0:]", "m.get('content', [])"])
def test_however_a_template_takes_the_content_the_question_is_in_the_prompt(read):
    template = "{% for m in messages %}{% for p in " + read + " %}{{ p.text }}{% endfor %}{% endfor %} A:"
    assert rendered("What is it?", template=template) == "What is it? A:"


def test_a_template_that_counts_through_the_content_has_the_question_in_the_prompt():
    template = "{% for i in range(messages[0].content | length) %}{{ messages[0].content[i].text }}{% endfor %} A:"
    assert rendered("What is it?", template=template) == "What is it? A:"


@given(st.lists(st.sampled_from([IMAGE_MARK, "a", "<", "image", ">", " "]), max_size=8).map("".join), st.integers(0, 3))
def test_a_question_renders_with_one_mark_per_image_or_is_refused(question, images):
    try:
        whole = rendered(question, ["a.png"] * images)
    except PromptError:
        words = question.replace(IMAGE_MARK, "").strip()
        assert not words or question.count(IMAGE_MARK) not in (0, images)
    else:
        assert whole.count(IMAGE_MARK) == images
