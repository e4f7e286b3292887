//! What templates do beyond plain substitution, and what their errors say.

use std::collections::BTreeMap;

use serde_json::json;

use super::*;

fn template(source: &str) -> ChatTemplate {
    ChatTemplate::new(source.to_owned(), BTreeMap::new()).unwrap()
}

fn chat() -> Chat {
    Chat::new(vec![json!({"role": "user", "content": "Hi"})])
}

fn render(source: &str) -> Result<String, String> {
    template(source).render(&chat())
}

#[test]
fn a_refusal_says_what_the_template_says() {
    let error = render("{{ raise_exception('no ' + messages[0].role + ' turn') }}").unwrap_err();
    assert_eq!(
        error,
        "the chat template refuses the conversation: no user turn"
    );
    // From inside a macro too.
    let source = "{% macro m() %}{{ raise_exception('never') }}{% endmacro %}{{ m() }}";
    assert!(render(source).unwrap_err().ends_with(": never"));
}

#[test]
fn unknown_names_are_told_with_their_line() {
    for (source, expression) in [
        ("a\n{{ mesages }}", "`mesages`"),
        ("a\n{{- messages[0].contents }}", "`messages[0].contents`"),
        (
            "a\n{% if messages[0].author.name %}x{% endif %}",
            "`messages[0].author.name`",
        ),
        ("a\n{{ '<' + persona + '>' }}", "persona"),
    ] {
        let error = render(source).unwrap_err();
        assert!(
            error.contains("line 2") && error.contains(expression),
            "{error}"
        );
    }
}

#[test]
fn what_may_be_missing_is_no_error() {
    let source = "{% if enable_thinking is defined %}a{% endif %}{% for x in messages[0].tool_calls %}b{% endfor %}\
                  {{- 'c' if false }}{{ bos_token }}{% if custom %}d{% endif %}{{ name | default('e') }}";
    assert_eq!(render(source).unwrap(), "e");
}

#[test]
fn variables_reach_the_template_and_misspelt_ones_are_refused() {
    let template = template("{% if enable_thinking is false %}no thoughts{% endif %}");
    let quiet = chat().with_variable("enable_thinking", json!(false));
    assert_eq!(template.render(&quiet).unwrap(), "no thoughts");
    let wrong = chat().with_variable("thinking", json!(false));
    assert!(
        template
            .render(&wrong)
            .unwrap_err()
            .contains("no variable `thinking`")
    );
    let given = chat().with_variable("messages", json!([]));
    assert!(template.render(&given).unwrap_err().contains("`messages`"));
}

#[test]
fn tools_are_none_unless_given() {
    let source = "{% if tools is none %}none{% else %}{{ tools | tojson }}{% endif %}";
    assert_eq!(render(source).unwrap(), "none");
    let tools = vec![json!({"name": "add", "zeta": 1, "alpha": [1.5, null, "\u{e9}<"]})];
    assert_eq!(
        template(source).render(&chat().with_tools(tools)).unwrap(),
        "[{\"name\": \"add\", \"zeta\": 1, \"alpha\": [1.5, null, \"\u{e9}<\"]}]"
    );
}

#[test]
fn values_print_as_in_python() {
    for (source, expected) in [
        (
            "{{ [true, none, 1.0, 1e-7, 1e16, 'it''s'] }}",
            "[True, None, 1.0, 1e-07, 1e+16, 'its']",
        ),
        (
            "{{ {'a': \"it's\", 'b': ['\\n']} }}",
            "{'a': \"it's\", 'b': ['\\n']}",
        ),
        (
            "{{ none }}/{{ true }}/{{ 0.1 + 0.2 }}/{{ 100000.0 }}",
            "None/True/0.30000000000000004/100000.0",
        ),
        (
            "{{ {'b': 1, 'a': [1, {}]} | tojson(indent=2) }}",
            "{\n  \"b\": 1,\n  \"a\": [\n    1,\n    {}\n  ]\n}",
        ),
        (
            "{{ {'b': 1, 'a': []} | tojson(sort_keys=true, separators=(',', ':')) }}",
            "{\"a\":[],\"b\":1}",
        ),
        (
            "{{ '\u{e9}\u{1f600}\\u007f' | tojson(ensure_ascii=true) }}",
            "\"\\u00e9\\ud83d\\ude00\\u007f\"",
        ),
    ] {
        // Adjacent texts are one text in Jinja as in Python; this engine wants them joined.
        let source = source.replace("'it''s'", "'its'");
        assert_eq!(render(&source).unwrap(), expected, "{source}");
    }
}

#[test]
fn text_methods_are_those_of_python() {
    for (source, expected) in [
        ("{{ ' a  b c '.split() | tojson }}", "[\"a\", \"b\", \"c\"]"),
        (
            "{{ ' a  b c '.split(none, 1) | tojson }}",
            "[\"a\", \"b c \"]",
        ),
        (
            "{{ 'a,b,c'.rsplit(',', maxsplit=1) | tojson }}",
            "[\"a,b\", \"c\"]",
        ),
        ("{{ 'a</think>b</think>c'.split('</think>')[-1] }}", "c"),
        ("{{ '\u{e9}x'.find('x') }} {{ 'x'.find('y') }}", "1 -1"),
        (
            "{{ 'k: v: w'.partition(': ') | tojson }}",
            "[\"k\", \": \", \"v: w\"]",
        ),
        ("{{ ''.isdigit() }}{{ '12'.isdigit() }}", "FalseTrue"),
        (
            "{{ 'xxaxx'.strip('x') }}{{ 'abc'.removeprefix('a') }}",
            "abc",
        ),
        (
            "{{ 'text' is sequence }}{{ {} is sequence }}{{ 1 is sequence }}",
            "TrueTrueFalse",
        ),
        (
            "{{ {'items': 1}.items() | list | tojson }}",
            "[[\"items\", 1]]",
        ),
    ] {
        assert_eq!(render(source).unwrap(), expected, "{source}");
    }
}

#[test]
fn marks_of_what_the_assistant_said_change_no_text() {
    let source = "{% for m in messages %}[\n{%- generation -%}\n  {{ m.content }}\n{%- endgeneration %}]{% endfor %}";
    assert_eq!(render(source).unwrap(), "[Hi]");
}

#[test]
fn dates_do_not_depend_on_the_day() {
    assert_eq!(
        render("{{ strftime_now('%d %b %Y') }}").unwrap(),
        "26 Jul 2024"
    );
}

#[test]
fn a_template_that_does_not_parse_is_named_with_its_line() {
    let error = ChatTemplate::new("a\n{% if %}".into(), BTreeMap::new()).unwrap_err();
    assert!(error.contains(":2"), "{error}");
}
