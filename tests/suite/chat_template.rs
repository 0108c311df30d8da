//! Chat templates render what transformers renders; the expectations in `tests/fixtures/templates` are its own.
//!
//! All is rendered twice, in this process and in a worker, and has to come out the same.

use std::fs;
use std::io::{BufRead, BufReader, Write};
use std::process::{Command, Stdio};
use std::sync::mpsc;
use std::thread;
use std::time::{Duration, Instant};

use mlx_lm::chat_template::{ChatTemplate, Conversation, set_worker};
use mlx_lm::error::{Error, Result};
use serde_json::{Map, Value, json};

use crate::{fixture, unpack_demo};

fn worker() -> Command {
    let mut command = Command::new(env!("CARGO_BIN_EXE_mlx_lm"));
    command.arg("render-templates");
    command
}

fn render_in_worker(template: &ChatTemplate, conversation: &Conversation) -> Result<String> {
    set_worker(|| Ok(worker()));
    template.render(conversation)
}

/// What comes of the template, in this process and in a worker.
fn outcome(template: &ChatTemplate, conversation: &Conversation) -> Result<String> {
    let here = template.render_here(conversation);
    let there = render_in_worker(template, conversation);
    assert_eq!(format!("{here:?}"), format!("{there:?}"));
    there
}

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
    outcome(&ChatTemplate::new(template, Map::new()), &conversation()).unwrap_or_else(|e| panic!("{template}: {e}"))
}

fn error(template: &str) -> String {
    message(outcome(&ChatTemplate::new(template, Map::new()), &conversation()))
}

fn message(rendered: Result<String>) -> String {
    match rendered {
        Err(Error::Template(message)) => message,
        other => panic!("{other:?}"),
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
        let conversation = Conversation {
            messages: case["messages"].as_array().unwrap().clone(),
            tools: Some(case["tools"].clone()),
            add_generation_prompt: args.remove("add_generation_prompt").is_some_and(|flag| flag == true),
            continue_final_message: args.remove("continue_final_message").is_some_and(|flag| flag == true),
            args,
            date: Some(case["date"].as_str().unwrap().parse().unwrap()),
        };
        let rendered = outcome(&template, &conversation);
        match (case["expected"].as_str(), rendered) {
            (Some(expected), Ok(text)) => assert_eq!(text, expected, "{name}"),
            (None, Err(Error::Template(message))) => {
                // The wording is the template's own when it raises, and Jinja's or ours otherwise.
                let own = source.contains(case["error"].as_str().unwrap());
                assert!(!own || message == case["error"], "{name}: {message}");
            }
            (_, other) => panic!("{name}: {other:?}, but in transformers {case}"),
        }
    }
}

/// Expressions that no chat template is known to use, and that MiniJinja evaluates differently from Jinja2.
const DIFFERENT: [&str; 19] = [
    // Fails there and not here: values of two kinds in an order, a missing attribute, a loop over none.
    "'a' < 1",
    "[1, 2] < 3",
    "people|groupby('tag', default='-')|map(attribute='grouper')|list",
    "people|groupby('tag')|length",
    "{% for i in none %}x{% endfor %}",
    // Fails here.
    "'%*d' % (5, 3)",
    "'Ab Cd'.istitle()",
    "'foo bar baz qux'|wordwrap(7)",
    "{% macro m(a) %}{{ a }}{{ varargs }}{{ kwargs }}{% endmacro %}{{ m(1, 2, 3, x=4) }}",
    // Printed differently.
    "d.keys()",
    "{'a': 1}.items()",
    "range(3)",
    "namespace(a=1)",
    "{'b': [1, 2], 'a': 'x'}|pprint",
    "1 ~ 1e-05",
    "'ǆ a'.title()",
    // Python tells attributes from items, undefined from none, and goes through what `map` gives once.
    "people[0]|attr('name')",
    "people|map(attribute='tag', default=none)|list",
    "{% set f = ['x']|map('upper') %}{{ f|list }}{{ f|list }}",
];

#[test]
fn expressions_have_the_values_they_have_in_python() {
    let file = cases("expressions.json");
    let mut args = file["context"].as_object().unwrap().clone();
    let messages = args.remove("messages").unwrap().as_array().unwrap().clone();
    let conversation = Conversation { messages, args, ..conversation() };
    let mut wrong = Vec::new();
    for case in file["cases"].as_array().unwrap() {
        let expression = case["expression"].as_str().unwrap();
        let template =
            if expression.starts_with("{%") { expression.to_owned() } else { format!("{{{{ {expression} }}}}") };
        let rendered = outcome(&ChatTemplate::new(&template, Map::new()), &conversation);
        let same = match (case["expected"].as_str(), &rendered) {
            (Some(expected), Ok(text)) => text == expected,
            (None, Err(Error::Template(_))) => true,
            _ => false,
        };
        if same == DIFFERENT.contains(&expression) {
            wrong.push(format!("{rendered:?}, in transformers {case}"));
        }
    }
    assert!(wrong.is_empty(), "{}", wrong.join("\n"));
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
fn an_error_behind_a_percent_has_the_column_of_the_source() {
    let percents = "{{ '%s' % (5 % 3) }}{% if loop is defined and 4 % 2 %}{% endif %}";
    let place = |template: &str| error(&format!("é\n{template}{{{{ missing.x }}}}"));
    assert_eq!(place(percents), place(&"x".repeat(percents.len())));
    assert!(error("{{ 1 % 2 }}{{ 1 % }}").starts_with("line 1, column "));
    assert!(error("a\n{{ [1] % 2 }}").starts_with("line 2, column "));
}

#[test]
fn a_last_message_of_the_assistant_is_continued_unless_it_calls() {
    let question = json!({"role": "user", "content": "Hi"});
    let said = |message: Value| {
        let conversation = Conversation::to_answer(vec![question.clone(), message]);
        assert_ne!(conversation.add_generation_prompt, conversation.continue_final_message);
        conversation.continue_final_message
    };
    assert!(said(json!({"role": "assistant", "content": "He"})));
    assert!(said(json!({"role": "assistant", "content": "He", "tool_calls": []})));
    let call = json!({"type": "function", "function": {"name": "f", "arguments": {}}});
    assert!(!said(json!({"role": "assistant", "content": "", "tool_calls": [call]})));
    assert!(!said(question.clone()));
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
        // On a slow machine a worker has no time to run out of fuel.
        let template = ChatTemplate::new(source, Map::new());
        for rendered in [template.render_here(&conversation()), render_in_worker(&template, &conversation())] {
            let error = message(rendered);
            assert!(error.starts_with("line 1, column ") && error.contains("takes too long"), "{source}: {error}");
        }
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
        let text = outcome(&ChatTemplate::new(&template(name), tokens.into_iter().collect()), &long).unwrap();
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
    for render in [ChatTemplate::render_here, render_in_worker] {
        let (before, rendered, after) = (today(), render(&template, &unpinned).unwrap(), today());
        assert!([before, after].contains(&rendered), "{rendered}");
    }
}

#[test]
fn arguments_win_over_special_tokens_but_not_over_the_conversation() {
    let with = |args: Value| Conversation { args: args.as_object().unwrap().clone(), ..conversation() };
    let tokens: Map<_, _> = [("bos_token".to_owned(), json!("<s>"))].into_iter().collect();
    let template = ChatTemplate::new("{{ bos_token }}{{ documents }}{{ tools }}{{ eos_token is defined }}", tokens);
    assert_eq!(outcome(&template, &conversation()).unwrap(), "<s>NoneNoneFalse");
    assert_eq!(outcome(&template, &with(json!({"bos_token": "B", "documents": [1]}))).unwrap(), "B[1]NoneFalse");
    for name in ["messages", "tools", "add_generation_prompt"] {
        let error = outcome(&template, &with(json!({name: 1}))).unwrap_err();
        assert!(matches!(&error, Error::Input(message) if message.contains(name)), "{error}");
    }
}

#[test]
fn a_message_is_an_object_and_null_is_none() {
    let message = |message| Conversation { messages: vec![message], ..conversation() };
    let template = ChatTemplate::new("{{ messages[0].content is defined }}{{ messages[0].a }}", Map::new());
    assert_eq!(outcome(&template, &message(json!({"content": null, "a": [null]}))).unwrap(), "True[None]");
    assert!(matches!(outcome(&template, &message(json!("Hi"))), Err(Error::Input(text)) if text.contains("\"Hi\"")));
}

#[test]
fn a_worker_sees_the_same_numbers() {
    // The second is what a quick reader makes of the first.
    for number in [0.30000000000000004, 1.7976931348623157e308, 5e-324, -0.0, 123456789.12345679, 8.533e22] {
        let args = [("x".to_owned(), json!([number, u64::MAX, i64::MIN]))].into_iter().collect();
        outcome(&ChatTemplate::new("{{ x }}", Map::new()), &Conversation { args, ..conversation() }).unwrap();
    }
}

/// Two lists of two lists … of one: as trees, larger than any memory.
const TREES: &str = "{% set a = namespace(s=[1]) %}{% set b = namespace(s=[1]) %}\
    {% for i in range(60) %}{% set a.s = [a.s, a.s] %}{% set b.s = [b.s, b.s] %}{% endfor %}";

/// Mappings that are nested deeper than a stack is when it prints them.
const NESTED: &str = "{% set ns = namespace(x=1) %}{% for i in range(90000) %}{% for j in range(2) %}\
    {% set ns.x = {'a': ns.x} %}{% endfor %}{% endfor %}";

/// A list that is added to itself.
const DOUBLED: &str = "{% set ns = namespace(l=[1]) %}{% for i in range(60) %}{% set ns.l = ns.l + ns.l %}{% endfor %}";

/// A statement whose syntax tree is deeper than a stack.
fn elifs() -> String {
    format!("{{% if 0 %}}{}{{% endif %}}", "{% elif 0 %}".repeat(80_000))
}

/// Templates that would abort the process, take gigabytes or never end, and where their error is.
fn hostile() -> Vec<(String, &'static str)> {
    let mut hostile = vec![
        (format!("{DOUBLED}\n{{{{ ns.l|length }}}}"), "line 1, column "),
        (format!("{DOUBLED}\n{{{{ ns.l|sort }}}}"), "line 1, column "),
        (format!("{NESTED}\n{{{{ ns.x }}}}"), "line "),
        (format!("a\n{}", elifs()), "line 2, column "),
        ("{% for i in range(20000) %}{{ 'a' * 1000 }}{% endfor %}".into(), "line 1, column "),
        ("\n{{ raise_exception('a' * 20000000) }}".into(), "line 2, column 4: "),
    ];
    for (expression, column) in [
        ("'{:100000000000}'.format(5)", "line 2, column 21: "),
        ("'{:4000000000}'.format(5)", "line 2, column 19: "),
        ("'{:.4000000000f}'.format(5.0)", "line 2, column 21: "),
        ("('{0:90000000}' * 100).format(5)", "line 2, column 26: "),
        ("('a' * 20).replace('a', 'b' * 1000000).replace('b', 'c' * 1000)", "line 2, column "),
        ("('b' * 100000).join(['a'] * 100000)", "line 2, column 18: "),
        ("a.s == b.s", "line 2, column 1: "),
        ("a.s < b.s", "line 2, column 1: "),
        ("a.s in [b.s]", "line 2, column 1: "),
        ("[a.s, b.s]|sort", "line 2, column 15: "),
        ("[a.s, b.s]|unique", "line 2, column 15: "),
        ("{a.s: 1}", "line 2, column 4: "),
        ("a.s|string", "line 2, column 8: "),
        ("a.s", "line 2, column 4: "),
    ] {
        hostile.push((format!("{TREES}\n{{{{ {expression} }}}}"), column));
    }
    hostile
}

#[test]
fn hostile_templates_end_with_the_place_in_little_memory() {
    let scratch = tempfile::tempdir().unwrap();
    unpack_demo(scratch.path());
    for (template, place) in hostile() {
        fs::write(scratch.path().join("chat_template.jinja"), &template).unwrap();
        // The limit is that of the program, which would not get through with more.
        let mut command = Command::new("sh");
        command.args(["-c", "ulimit -v 524288; exec \"$@\"", "sh", env!("CARGO_BIN_EXE_mlx_lm")]);
        command.args(["tokenize", "--prompt", "hi", "--model-root"]).arg(scratch.path());
        let started = Instant::now();
        let output = command.output().unwrap();
        let (took, stderr) = (started.elapsed(), String::from_utf8_lossy(&output.stderr));
        let template = &template[..template.floor_char_boundary(300)];
        assert_eq!(output.status.code(), Some(1), "{template}: {stderr}");
        assert!(stderr.starts_with(&format!("error: chat template: {place}")), "{template}: {stderr}");
        assert!(stderr.contains(": stopped because it ") && stderr.lines().count() == 1, "{template}: {stderr}");
        assert!(took < Duration::from_secs(10), "{template}: {took:?}");
    }
}

#[test]
fn after_a_hostile_template_the_next_renders() {
    for (source, problem) in [
        (format!("{TREES}{{{{ a.s }}}}"), "takes too long"),
        (elifs(), "needs more than 512 MB"),
        ("{{ 'a' * 20000000 }}".into(), "writes too much"),
    ] {
        let error = message(render_in_worker(&ChatTemplate::new(&source, Map::new()), &conversation()));
        assert!(error.contains(problem), "{error}");
        assert_eq!(render("{{ messages[0].content }}"), "Hi");
    }
}

#[test]
fn a_template_has_a_length() {
    let error = error(&"abc\n".repeat(300_000));
    assert_eq!(error, "line 262145, column 1: it goes on, expected at most 1048576 bytes");
    assert_eq!(render(&"abc ".repeat(262_144)).len(), 1 << 20);
}

#[test]
fn a_conversation_too_long_for_a_worker_is_not_the_templates_fault() {
    let messages = vec![json!({"role": "user", "content": "a".repeat(200 << 20)})];
    let long = Conversation { messages, ..conversation() };
    let error = message(render_in_worker(&ChatTemplate::new("{{ messages }}", Map::new()), &long));
    assert!(error.contains("conversation too long for its 512 MB"), "{error}");
}

#[test]
fn a_worker_limits_its_memory_and_ends_with_the_process_that_it_works_for() {
    let mut process = worker().stdin(Stdio::piped()).stdout(Stdio::piped()).stderr(Stdio::null()).spawn().unwrap();
    let (mut requests, mut replies) = (process.stdin.take().unwrap(), BufReader::new(process.stdout.take().unwrap()));
    let mut ask = |source: &str| {
        let job = json!({"source": source, "variables": {}, "date": null});
        writeln!(requests, "{}", json!([job, [{"source": source.len(), "fuel": 5_000_000}]])).unwrap();
    };
    ask("hello");
    let mut reply = String::new();
    replies.read_line(&mut reply).unwrap();
    assert_eq!(reply, "{\"Done\":{\"Ok\":\"hello\"}}\n");
    if cfg!(target_os = "linux") {
        let of_process = |file: &str| fs::read_to_string(format!("/proc/{}/{file}", process.id())).unwrap();
        let (limits, status) = (of_process("limits"), of_process("status"));
        let numbers = |text: &str, name: &str| -> Vec<u64> {
            let line = text.lines().find_map(|line| line.strip_prefix(name)).unwrap();
            line.split_whitespace().filter_map(|word| word.parse().ok()).collect()
        };
        // What a template has, beside the program and its libraries.
        let most = numbers(&limits, "Max address space");
        let program = numbers(&status, "VmSize:")[0] << 10;
        assert!(most.len() == 2 && most[0] == most[1] && (512 << 20..=(512 << 20) + program).contains(&most[0]));
        assert_eq!(numbers(&limits, "Max core file size"), [0, 0]);
    }
    ask(&format!("{TREES}{{{{ a.s }}}}"));
    drop(requests);
    let (ended, end) = mpsc::channel();
    thread::spawn(move || ended.send(process.wait().unwrap()));
    assert!(end.recv_timeout(Duration::from_secs(10)).unwrap().success());
}
