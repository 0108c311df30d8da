//! Chat templates render what transformers renders; the expectations in `tests/fixtures/templates` are its own.

use std::fs;

use mlx_lm::chat_template::{ChatTemplate, Conversation};
use mlx_lm::error::Error;
use serde_json::{Map, Value, json};

use crate::fixture;

fn template(name: &str) -> String {
    fs::read_to_string(fixture("templates").join(name)).unwrap()
}

fn cases(name: &str) -> Value {
    serde_json::from_str(&template(name)).unwrap()
}

/// One user message, on a day with one digit.
fn conversation() -> Conversation {
    Conversation {
        messages: vec![json!({"role": "user", "content": "Hi"})],
        date: Some(jiff::civil::date(2024, 7, 6)),
        ..Conversation::default()
    }
}

fn render(template: &str) -> String {
    ChatTemplate::new(template, Map::new()).render(&conversation()).unwrap_or_else(|e| panic!("{template}: {e}"))
}

fn error(template: &str) -> String {
    match ChatTemplate::new(template, Map::new()).render(&conversation()) {
        Err(Error::Template(message)) => message,
        other => panic!("{template}: {other:?}"),
    }
}

#[test]
fn conversations_render_as_in_transformers() {
    for case in cases("cases.json").as_array().unwrap() {
        let name = &case["name"];
        let mut source = template(case["template"].as_str().unwrap());
        let mut case = case.clone();
        if source.contains("varargs") {
            // MiniJinja's macros know nothing of arguments beyond those they declare.
            let without = |text: &str, part| text.lines().filter(|l| !l.contains(part)).collect::<Vec<_>>().join("\n");
            source = without(&source, "varargs");
            case["expected"] = without(case["expected"].as_str().unwrap(), "(){}").into();
        }
        let tokens = ["bos_token", "eos_token"].into_iter().filter(|token| !case[token].is_null());
        let template = ChatTemplate::new(&source, tokens.map(|t| (t.to_owned(), case[t].clone())).collect());
        let mut args = case["kwargs"].as_object().unwrap().clone();
        let rendered = template.render(&Conversation {
            messages: case["messages"].as_array().unwrap().clone(),
            tools: Some(case["tools"].clone()),
            add_generation_prompt: args.remove("add_generation_prompt").is_some_and(|flag| flag == true),
            args,
            date: Some(case["date"].as_str().unwrap().parse().unwrap()),
        });
        match (case["expected"].as_str(), rendered) {
            (Some(expected), Ok(text)) => assert_eq!(text, expected, "{name}"),
            (None, Err(Error::Template(message))) => {
                // The wording is the template's own when it raises, and Jinja's otherwise.
                let own = source.contains(case["error"].as_str().unwrap());
                assert!(!own || message == case["error"], "{name}: {message}");
            }
            (_, other) => panic!("{name}: {other:?}, but in transformers {case}"),
        }
    }
}

/// Expressions that no chat template is known to use, and that MiniJinja evaluates differently from Jinja2.
const DIFFERENT: [&str; 12] = [
    "'%s-%s' % ('a', 'b')",
    "'x'|int",
    "\"they're BILL'S friends from the UK\".title()",
    "['it\\'s', \"say \\\"x\\\"\", 'both \\' and \"', 'line\\nbreak', 'é\\u200b']",
    "people[0]|attr('name')",
    "'a b c'|wordcount",
    "'a long sentence indeed'|truncate(12)",
    "'a b/ç'|urlencode",
    "payload",
    "payload.list",
    "'a' < 1",
    "[1, 2] < 3",
];

#[test]
fn expressions_have_the_values_they_have_in_python() {
    let file = cases("expressions.json");
    let mut args = file["context"].as_object().unwrap().clone();
    let messages = args.remove("messages").unwrap().as_array().unwrap().clone();
    let conversation = Conversation { messages, args, ..conversation() };
    for case in file["cases"].as_array().unwrap() {
        let expression = case["expression"].as_str().unwrap();
        let rendered = ChatTemplate::new(&format!("{{{{ {expression} }}}}"), Map::new()).render(&conversation);
        let same = match (case["expected"].as_str(), &rendered) {
            (Some(expected), Ok(text)) => text == expected,
            (None, Err(Error::Template(_))) => true,
            _ => false,
        };
        let message = format!("{expression}: {rendered:?}, in transformers {case}");
        assert_eq!(same, !DIFFERENT.contains(&expression), "{message}");
    }
}

#[test]
fn python_methods_beyond_those_of_minijinja() {
    assert_eq!(render("{{ 'a-b-c'.rsplit('-', 1) }}{{ 'a-b'.rsplit('-') }}"), "['a-b', 'c']['a', 'b']");
    assert_eq!(
        render("{{ 'abc'.removeprefix('ab') }}{{ 'abc'.removesuffix('bc') }}{{ 'x'.removeprefix('y') }}"),
        "cax"
    );
    assert_eq!(render("{{ x|default('a') }}{{ ''|default('b', true) }}{{ ''|default('c', boolean=true) }}"), "abc");
    assert_eq!(
        render("{% set j = joiner(',') %}{{ j() }}a{{ j() }}b{% set c = cycler(1, 2) %}{{ c.next() }}{{ c.next() }}"),
        "a,b12"
    );
    for iterable in ["'a'", "[]", "{}", "[1][::-1]", "missing"] {
        assert_eq!(render(&format!("{{{{ ({iterable}) is iterable }}}}")), "True", "{iterable}");
    }
    for scalar in ["none", "1", "1.5", "true"] {
        let both = format!("{{{{ {scalar} is iterable }}}}{{{{ {scalar} is sequence }}}}");
        assert_eq!(render(&both), "FalseFalse", "{scalar}");
    }
}

#[test]
fn floats_print_as_in_python() {
    for number in ["1.0", "0.1", "-0.0", "1e+16", "1e-05", "0.0001", "1234567.5", "1.5e+300", "9999999999999998.0"] {
        assert_eq!(render(&format!("{{{{ {number} }}}} {{{{ {number}|tojson }}}}")), format!("{number} {number}"));
    }
    assert_eq!(render("{{ 1e999 }} {{ -1e999 }} {{ (1e999 - 1e999) }}"), "inf -inf nan");
    assert_eq!(render("{{ [1e999, -1e999, 1e999 - 1e999]|tojson }}"), "[Infinity, -Infinity, NaN]");
}

#[test]
fn json_is_that_of_pythons_dumps() {
    for (expression, expected) in [
        (r#"{'b': [1, 2.0, none, true], 'a': 'é<&>"'}|tojson"#, r#"{"b": [1, 2.0, null, true], "a": "é<&>\""}"#),
        (r#"{'b': 1, 'a': 2}|tojson(sort_keys=true)"#, r#"{"a": 2, "b": 1}"#),
        (r#"[1, {'a': 2}]|tojson(separators=(',', ':'))"#, r#"[1,{"a":2}]"#),
        (r#"'é😀\x7f'|tojson(ensure_ascii=true)"#, r#""\u00e9\ud83d\ude00\u007f""#),
        (r#"'é'|tojson(true)"#, r#""\u00e9""#),
        (r#""\\\b\f\n\r\t\x01\x7f/"|tojson"#, "\"\\\\\\b\\f\\n\\r\\t\\u0001\u{7f}/\""),
        ("[1, [], {}, [2]]|tojson(indent=2)", "[\n  1,\n  [],\n  {},\n  [\n    2\n  ]\n]"),
        ("{'a': 1}|tojson(indent='\t')", "{\n\t\"a\": 1\n}"),
        ("{1: 2, true: 3, none: 4}|tojson(indent=0)", "{\n\"1\": 3,\n\"null\": 4\n}"),
    ] {
        assert_eq!(render(&format!("{{{{ {expression} }}}}")), expected, "{expression}");
    }
    assert!(error("{{ missing|tojson }}").contains("undefined"));
    assert!(error("{{ 1|tojson(compact=true) }}").contains("unknown keyword"));
}

#[test]
fn generation_tags_leave_the_text_alone_and_are_a_scope() {
    for (source, expected) in [
        ("{% generation %}a{% endgeneration %}b", "ab"),
        ("x {%- generation -%} a {%- endgeneration -%} b", "xab"),
        ("x\n  {% generation %}\n  a\n  {% endgeneration %}\n  b", "x\n  a\n  b"),
        ("x\n  {%+ generation %}a{% endgeneration +%}\nb", "x\n  a\nb"),
        ("{%generation%}a{%endgeneration%}", "a"),
        ("{% set x = 0 %}{% generation %}{% set x = 1 %}{{ x }}{% endgeneration %}{{ x }}", "10"),
        ("{{ '{% generation %}' }}{# {% endgeneration %} #}", "{% generation %}"),
        ("{% raw %}{% generation %}'{% endraw %}{% generation %}{{ '}}' }}{% endgeneration %}", "{% generation %}'}}"),
        ("{# {{ ' #}{% generation %}a{% endgeneration %}", "a"),
        ("{{ [{'a': {}}, '{% generation %}'][1] }}{% generation %}{% endgeneration %}", "{% generation %}"),
        (
            r#"{{ "\"{% endgeneration %}" }}{{ {'a': {}} }}{% generation %}{% endgeneration %}"#,
            "\"{% endgeneration %}{'a': {}}",
        ),
    ] {
        assert_eq!(render(source), expected, "{source}");
    }
    // A column after the tag is that of the source.
    let with_tag = error("{% generation %}{% endgeneration %}{{ missing.x }}");
    let without = error("{#generation x#}{#  endgeneration #}{{ missing.x }}");
    assert_eq!(with_tag.replace("column 39", "column 40"), without);
}

#[test]
fn line_ends_are_newlines() {
    assert_eq!(render("a\r\n{% if true %}\r\nb\rc\r\n{% endif %}\r\n"), "a\nb\nc\n");
}

#[test]
fn errors_tell_where_and_what() {
    assert_eq!(error("{{ raise_exception('Only users may speak.') }}"), "Only users may speak.");
    assert_eq!(error("{% macro f() %}{{ raise_exception('No.') }}{% endmacro %}{{ f() }}"), "No.");
    for (source, place) in [
        ("a\n  {{ messages[0].name.first }}", "line 2, column 17: "),
        ("a\r\n\r\né {% if %}", "line 3, column 9: "),
        ("{{ 1 + }}", "line 1, column 8: "),
    ] {
        assert!(error(source).starts_with(place), "{source}: {}", error(source));
    }
    assert!(error("{% for m in messages %}").contains("end of block"));
    assert!(error("{{ 'a'|shout }}").contains("shout"));
}

#[test]
fn a_template_cannot_run_forever() {
    for source in [
        "{% for i in range(100000) %}{% for j in range(100000) %}{% endfor %}{% endfor %}",
        "{% set ns = namespace(x='a') %}{% for i in range(100) %}{% set ns.x = ns.x ~ ns.x %}{% endfor %}",
        "{% set ns = namespace(x=[1]) %}{% for i in range(60) %}{% set ns.x = [ns.x, ns.x] %}{% endfor %}{{ ns.x|tojson }}",
    ] {
        assert!(error(source).contains("takes too long"), "{source}");
    }
    assert!(error("{{ range(10000000) }}").contains("too many"));
    assert!(error("{% macro f() %}{{ f() }}{% endmacro %}{{ f() }}").contains("recursion"));
    let nested =
        "{% set ns = namespace(x=[]) %}{% for i in range(200) %}{% set ns.x = [ns.x] %}{% endfor %}{{ ns.x|tojson }}";
    assert!(error(nested).contains("nested"));
}

#[test]
fn a_long_conversation_is_within_the_budget() {
    let roles = ["user", "assistant"].into_iter().cycle().take(2000);
    let messages = roles.map(|role| json!({"role": role, "content": "A word or two. ".repeat(40)})).collect();
    let long = Conversation { messages, ..conversation() };
    for name in ["chatml_thinking.jinja", "headers.jinja", "inst_tools.jinja", "zephyr.jinja"] {
        let tokens = [("bos_token".to_owned(), json!("<s>")), ("eos_token".to_owned(), json!("</s>"))];
        let text = ChatTemplate::new(&template(name), tokens.into_iter().collect()).render(&long).unwrap();
        assert!(text.len() > 2000 * 600, "{name}: {}", text.len());
    }
}

#[test]
fn a_day_can_be_pinned_and_is_today_otherwise() {
    assert_eq!(render("{{ strftime_now('%d %b %Y|%-d. %B, %A|%H:%M') }}"), "06 Jul 2024|6. July, Saturday|00:00");
    let today = || jiff::Zoned::now().date().to_string();
    let unpinned = Conversation { date: None, ..conversation() };
    let template = ChatTemplate::new("{{ strftime_now('%Y-%m-%d') }}", Map::new());
    // The day may change between two looks at the clock, but not twice.
    let (before, rendered, after) = (today(), template.render(&unpinned).unwrap(), today());
    assert!([before, after].contains(&rendered), "{rendered}");
}

#[test]
fn arguments_win_over_special_tokens_but_not_over_the_conversation() {
    let with = |args: Value| Conversation { args: args.as_object().unwrap().clone(), ..conversation() };
    let tokens: Map<_, _> = [("bos_token".to_owned(), json!("<s>"))].into_iter().collect();
    let template = ChatTemplate::new("{{ bos_token }}{{ documents }}{{ tools }}{{ eos_token is defined }}", tokens);
    assert_eq!(template.render(&conversation()).unwrap(), "<s>NoneNoneFalse");
    assert_eq!(template.render(&with(json!({"bos_token": "B", "documents": [1]}))).unwrap(), "B[1]NoneFalse");
    for name in ["messages", "tools", "add_generation_prompt"] {
        let error = template.render(&with(json!({name: 1}))).unwrap_err();
        assert!(matches!(&error, Error::Input(message) if message.contains(name)), "{error}");
    }
}

#[test]
fn a_message_is_an_object_and_null_is_no_content() {
    let message = |message| Conversation { messages: vec![message], ..conversation() };
    let template = ChatTemplate::new("{{ messages[0].content is defined }}{{ messages[0].a }}", Map::new());
    assert_eq!(template.render(&message(json!({"content": null, "a": [null]}))).unwrap(), "False[None]");
    assert!(matches!(template.render(&message(json!("Hi"))), Err(Error::Input(text)) if text.contains("\"Hi\"")));
}
