use eventstore::backend::Event;
use proptest::prelude::*;

use super::*;

fn mapping(text: &str) -> Mapping {
    Mapping::parse(&[text]).unwrap_or_else(|error| panic!("{text}: {error}"))
}

fn record(text: &str) -> Record<'_> {
    Record::parse(text.as_bytes(), Number { record: 7, inner: None }).expect(text)
}

fn event(map: &str, text: &str) -> Event {
    mapping(map).event(&record(text)).unwrap_or_else(|failure| panic!("{map} of {text}: {failure}"))
}

fn refused(map: &str, text: &str) -> String {
    mapping(map).event(&record(text)).expect_err(text).message().to_owned()
}

/// The value of an expression as data.
fn data(expression: &str, text: &str) -> String {
    let map = format!(r#"id="i",type="T",aggregate_id="a",data={expression}"#);
    String::from_utf8(event(&map, text).data().to_vec()).expect("UTF-8")
}

/// The value of an expression as an id.
fn id(expression: &str, text: &str) -> String {
    event(&format!(r#"id={expression},type="T",aggregate_id="a""#), text).id().to_owned()
}

#[test]
fn paths_lead_to_what_stands_there_byte_for_byte() {
    let text = r#"{"a":{"b":[1.50,{"c d":"\u00e9"}], "x":1e400},"a.b":true,"":0,"[":2,"$t-1":null}"#;
    for (path, found) in [
        (".", text),
        (".a", r#"{"b":[1.50,{"c d":"\u00e9"}], "x":1e400}"#),
        (".a.b", r#"[1.50,{"c d":"\u00e9"}]"#),
        (".a.b[0]", "1.50"),
        (r#".a.b[1]."c d""#, r#""\u00e9""#),
        (r#".["a"]["b"][ 1 ][ "c d" ]"#, r#""\u00e9""#),
        (".a.x", "1e400"),
        (r#"."a.b""#, "true"),
        (r#"."""#, "0"),
        (r#"."\u005b""#, "2"),
        (".$t-1", "null"),
        (" .a.x ", "1e400"),
    ] {
        assert_eq!(data(path, text), found, "{path}");
    }
    for nothing in [".b", ".a.c", ".a.b[2]", ".a.b.c", ".a[0]", ".a.x.y", ".[0]", ".$t-1.x"] {
        assert_eq!(data(nothing, text), "", "{nothing}");
    }
}

#[test]
fn texts_are_made_of_texts_numbers_and_constants() {
    let text = r#"{"t":"ü\n","n":12.50,"b":false,"o":{},"l":[],"z":null,"e":""}"#;
    for (expression, made) in [
        (".t", "ü\n"),
        (".n", "12.50"),
        (".b", "false"),
        (r#""a, b""#, "a, b"),
        ("-1.5", "-1.5"),
        (r#".t+"-"+.n"#, "ü\n-12.50"),
        (r#" "x" + .n "#, "x12.50"),
        (".missing//.n", "12.50"),
        (".z//.e//.n", "12.50"),
        (r#".missing+"x"//.n"#, "12.50"),
        (r#".z+"x"//"y""#, "y"),
        ("number()", "7"),
        (r#""a"+number()"#, "a7"),
        ("next(.missing//41)", "42"),
        ("next(18446744073709551615)", "18446744073709551616"),
        ("text(.t)", "ü\n"),
        ("unix(1700000000)", "2023-11-14T22:13:20.000000Z"),
        (r#"unix("1700000000.1234567")"#, "2023-11-14T22:13:20.123456Z"),
        ("unix_ms(1700000000123)", "2023-11-14T22:13:20.123000Z"),
        ("unix_ms(0.5)", "1970-01-01T00:00:00.000500Z"),
        (r#"base64("w7w=")"#, "ü"),
        (r#"sha256("a"+"bc")"#, "ba7816bf8f01cfea414140de5dae2223b00361a396177a9cb410ff61f20015ad"),
        (r#"sha256("abc")"#, "6cc43f858fbb763301637b5af970e2a46b46f461f27e5a0f41e009c59b827b25"),
    ] {
        assert_eq!(id(expression, text), made, "{expression}");
    }
    let with = |expression: &str| refused(&format!(r#"id={expression},type="T",aggregate_id="a""#), text);
    assert!(with(".o").starts_with("invalid id: it is an object"));
    assert!(with(".l").starts_with("invalid id: it is an array"));
    assert_eq!(with(".z"), "invalid id: .z is missing");
    assert_eq!(with(r#".a//.z+"x""#), r#"invalid id: .a//.z+"x" is missing"#);
    assert!(with(".e").starts_with("invalid id: it is empty"));
    assert_eq!(with(r#""a"+.o"#), "invalid id: .o: it is an object, but must be a string or a number");
    assert!(with("next(.t)").contains("is not a whole number"));
    for no_time in [
        "unix(.t)",
        "unix(-1)",
        "unix(1e9)",
        "unix(253402300800)",
        r#"unix_ms("1.")"#,
        r#"unix_ms("99999999999999999999")"#,
    ] {
        assert!(with(no_time).contains("is not a number that is a time"), "{no_time}");
    }
    assert!(with("base64(.t)").contains("Base64"));
    assert!(with(r#"base64("/w==")"#).contains("UTF-8"));
}

#[test]
fn data_is_what_stands_there_or_what_was_in_a_text() {
    let text = r#"{"j":" {\"a\": 1.0}\n","s":"5","w":" ","q":"{no","z":null,"e":"","o":{"k" :1}}"#;
    for (expression, made) in [
        (".z", "null"),
        (".e", r#""""#),
        // An empty text counts as missing only if a text is wanted.
        (".e//.s", r#""""#),
        (".z//.s", r#""5""#),
        (".o", r#"{"k" :1}"#),
        ("json(.o)", r#"{"k" :1}"#),
        ("json(.j)", r#"{"a": 1.0}"#),
        ("json(.s)", r#""5""#),
        ("json(.q)", r#""{no""#),
        ("json(.w)", ""),
        ("json(.z)", ""),
        ("json(.e)//.o", r#"{"k" :1}"#),
        ("text(.q)", "{no"),
        ("text(.z)//.s", r#""5""#),
        (r#"base64("AAE=")"#, "\0\u{1}"),
        (r#".s+"x""#, r#""5x""#),
        (r#"{"a":[1, 2]}"#, r#"{"a":[1, 2]}"#),
        ("true", "true"),
    ] {
        assert_eq!(data(expression, text), made, "{expression}");
    }
}

#[test]
fn what_no_field_takes_is_the_rest() {
    let text = r#"{"i":1,"t":"T","a":{"n":"x"},"d":{"k":1.0},"m\u00e4":"r", "time":"2025-01-31T00:00:00Z"}"#;
    let map = "id=.i,type=.t,aggregate_id=.a.n,data=.d,metadata=rest(),recorded_at=.time";
    let made = event(map, text);
    // Only a part of `a` was taken, and the time may not be stored.
    assert_eq!(made.metadata(), r#"{"a":{"n":"x"},"mä":"r","time":"2025-01-31T00:00:00Z"}"#);
    let made = event(r#"id=.i+"-",type=.t,aggregate_id=.none//.i,data=rest(),metadata=.a"#, text);
    assert_eq!(made.data(), r#"{"d":{"k":1.0},"mä":"r","time":"2025-01-31T00:00:00Z"}"#.as_bytes());
    assert_eq!(made.metadata(), r#"{"n":"x"}"#);
    let made =
        event(r#"id="i",type=json(.t),aggregate_id="a",data=text(.d.x)//.i,metadata=rest()"#, r#"{"t":"T","i":5}"#);
    assert_eq!((made.data(), made.metadata()), (&b"5"[..], "{}"));
    // Without a mapping for data, it is the whole record.
    let made = event("id=.i,type=.t,aggregate_id=.a.n", text);
    assert_eq!(made.data(), text.as_bytes());
    assert_eq!(made.metadata(), "{}");
    assert_eq!(event("id=.i,type=.t,aggregate_id=.i,metadata=.none", text).metadata(), "{}");
    let failure = refused("id=.i,type=.t,aggregate_id=.i,metadata=.t", text);
    assert!(failure.starts_with("invalid metadata: it is not a JSON object"), "{failure}");
}

#[test]
fn a_key_that_is_there_twice_is_refused_where_it_matters() {
    let text = r#"{"a":1,"b":2,"a":3,"c":{"d":1,"d":2}}"#;
    assert_eq!(id(".b", text), "2");
    assert_eq!(refused(r#"id=.a,type="T",aggregate_id="a""#, text), r#"invalid id: the key "a" appears twice"#);
    assert!(refused(r#"id=.c.d,type="T",aggregate_id="a""#, text).contains("twice"));
}

#[test]
fn a_mapping_that_is_not_understood_says_where() {
    let with = |text: &str| match Mapping::parse(&[text]) {
        Err(Error::InvalidOption { option, reason }) if option == "map" => reason,
        other => panic!("{text}: {other:?}"),
    };
    for (text, words) in [
        ("", "a name is expected at the end"),
        ("cloudevent", "\"cloudevent\" is none of cloudevents, kurrentdb, gharchive, nor field=expression"),
        ("ident=.a", "\"ident\" is none of the fields id, type,"),
        ("id=", "a path such as .id, a \"text\" or a function is expected at the end"),
        ("id=id", "a path begins with a dot"),
        ("id=.a,", "a name is expected at the end"),
        ("id=.a .b", ", is expected at \".b\""),
        ("id=.a.", "a key is expected"),
        ("id=..a", ", is expected at \".a\""),
        ("id=.a[x]", "a number from 0 on or a \"key\" is expected at \"x]\""),
        ("id=.a[-1]", "a number from 0 on"),
        ("id=.a[1", "] is expected at the end"),
        ("id=.\"a", "JSON is expected"),
        ("id=\"a", "JSON is expected"),
        ("id=.a+", "a path such as"),
        ("id=.a/.b", ", is expected at \"/.b\""),
        (
            "id=sha1(.)",
            "\"sha1\" is none of the functions sha256, base64, json, text, next, unix, unix_ms, number, rest",
        ),
        ("id=sha256(.", ") is expected at the end"),
        ("id=sha256()", "a path such as"),
        ("id=number(.a)", ") is expected"),
        ("id=rest()", "rest() has to be all of data or of metadata"),
        ("metadata=.a//rest()", "rest() has to be all"),
        ("data=sha256(rest())", "rest() has to be all"),
        ("each=\"a\"", "a path such as .id is expected"),
        ("each=reverse(.a", ") is expected"),
        ("id=.a,aggregate_id=.b", "it does not say what the type is; add type=…, such as type=.type"),
        ("data=.", "it does not say what the id is"),
    ] {
        let reason = with(text);
        assert!(reason.contains(words), "{text}: {reason}");
    }
    let deep = format!("id={}.{}", "json(".repeat(10_000), ")".repeat(10_000));
    assert!(with(&deep).contains("one in the other"));
}

#[test]
fn later_mappings_go_before_earlier_ones() {
    let text = r#"{"id":"1","source":"s","type":"T","subject":"a","specversion":"1.0"}"#;
    let id_of =
        |texts: &[&str]| Mapping::parse(texts).expect("valid").event(&record(text)).expect("valid").id().to_owned();
    assert_eq!(id_of(&["cloudevents"]), "s#1");
    assert_eq!(id_of(&["cloudevents,id=.id"]), "1");
    assert_eq!(id_of(&["cloudevents", "id=.id+number()"]), "17");
    assert_eq!(id_of(&["id=.id", "cloudevents"]), "s#1");
}

#[test]
fn times_and_places_are_those_that_are_named() {
    let map = mapping("id=.i,type=.i,aggregate_id=.i,recorded_at=.t,version=.v,revision=next(.r)");
    let named = record(r#"{"i":"x","t":"2025-01-31T00:00:00Z","v":5,"r":"0"}"#);
    assert_eq!(map.recorded_at(&named).expect("a text"), Some("2025-01-31T00:00:00Z".to_owned()));
    assert_eq!(map.place(&named).expect("numbers"), (Some(5), Some(1)));
    let none = record(r#"{"i":"x","t":null}"#);
    assert_eq!(map.recorded_at(&none).expect("none"), None);
    assert_eq!(map.place(&none).expect("none"), (None, None));
    let wrong = record(r#"{"t":{},"v":-1}"#);
    assert!(map.recorded_at(&wrong).expect_err("an object").message().contains("invalid recorded_at: it is an object"));
    assert!(map.place(&wrong).expect_err("below zero").message().contains("the version \"-1\" is not a whole number"));
}

#[test]
fn a_record_may_have_several_events() {
    let map = mapping("each=.x.list,id=.i,type=.i,aggregate_id=.i");
    let text = r#"{"x":{"list":[{"i":1}, 2,{"i":3}]}}"#;
    let expected = vec![(1, r#"{"i":1}"#), (2, "2"), (3, r#"{"i":3}"#)];
    assert_eq!(map.events_of(&record(text)).expect("an array"), Some(expected.clone()));
    let reversed = mapping("each=reverse( .x.list ),id=.i,type=.i,aggregate_id=.i").events_of(&record(text));
    assert_eq!(reversed.expect("an array"), Some(expected.into_iter().rev().collect()));
    assert_eq!(map.events_of(&record(r#"{"x":{"list":[]}}"#)).expect("an array"), Some(Vec::new()));
    for text in [r#"{"x":{"list":{}}}"#, r#"{"x":1}"#, "{}"] {
        assert_eq!(map.events_of(&record(text)).expect("none"), None);
    }
}

#[test]
fn formats_are_recognized() {
    for (text, words) in [
        (r#"{"specversion":"1.0","id":"1","source":"s","type":"t"}"#, Some("CloudEvents: write --map cloudevents")),
        (r#"{"eventId":"1","eventType":"T","data":{}}"#, Some("EventStoreDB: write --map kurrentdb")),
        (r#"{"id":"1","type":"T","actor":{},"repo":{},"payload":{}}"#, Some("GH Archive: write --map gharchive")),
        (r#"{"uuid":"1","kind":"T"}"#, Some("if another program wrote it, say with --map")),
        (r#"{"id":"1","aggregate_id":"a"}"#, None),
        ("[]", None),
        ("x", None),
    ] {
        let recognized = recognize(text.as_bytes());
        match words {
            Some(words) => assert!(recognized.expect(text).contains(words), "{text}"),
            None => assert_eq!(recognized, None, "{text}"),
        }
    }
}

/// Parts of expressions, and other texts.
fn fragment() -> impl Strategy<Value = String> {
    prop_oneof![
        Just(".".to_owned()),
        Just(".a".to_owned()),
        Just("[0]".to_owned()),
        Just(".\"ü \\\"\"".to_owned()),
        Just("\"t+x\"".to_owned()),
        Just("//".to_owned()),
        Just("+".to_owned()),
        Just(" ".to_owned()),
        Just("json(".to_owned()),
        Just("number()".to_owned()),
        Just(")".to_owned()),
        Just("{\"a\":[1]}".to_owned()),
        "[\\PC]{0,3}",
    ]
}

proptest! {
    #[test]
    fn what_is_read_as_an_expression_is_read_again_from_what_was_written(fragments in prop::collection::vec(fragment(), 0..9)) {
        let text = fragments.concat();
        let _ = Mapping::parse(&[&text]);
        let mut parser = Parser::new(&text);
        if let Ok(expression) = parser.expression() {
            let mut again = Parser::new(expression.as_str());
            prop_assert_eq!(again.expression(), Ok(expression.clone()));
            prop_assert!(again.is_at_end());
            // Any expression gives a value or an error.
            let _ = expression.evaluate(&record(r#"{"a":[{"a":"x"},"{}"],"ü \"":1}"#), true);
        }
    }

    #[test]
    fn any_key_can_be_written_as_a_path_and_its_value_comes_back(
        key in "\\PC{0,6}",
        inner in "\\PC{0,6}",
        number in any::<f64>().prop_filter("JSON has no others", |number| number.is_finite()),
        text in any::<String>(),
    ) {
        let quoted = |text: &str| serde_json::Value::from(text).to_string();
        let value = format!("[ {number:e} ,{}]", quoted(&text));
        let json = format!("{{\"other key\":0,{}:{{{}: {value} }}}}", quoted(&key), quoted(&inner));
        prop_assume!(key != "other key");
        let path = format!(".{}[{}]", quoted(&key), quoted(&inner));
        prop_assert_eq!(data(&path, &json), value);
        prop_assert_eq!(data(&format!("text({path}[1])"), &json), text);
    }

    #[test]
    fn records_of_any_bytes_are_divided_or_refused(text in "[{}\\[\\]\",:0a\\\\ ]{0,24}") {
        let object = format!("{{{text}}}");
        let is_object = serde_json::from_str::<serde_json::Map<String, serde_json::Value>>(&object).is_ok();
        prop_assert_eq!(Record::parse(object.as_bytes(), Number::default()).is_ok(), is_object);
        let _ = recognize(text.as_bytes());
    }
}
