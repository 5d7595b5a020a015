//! The language, the digest's bytes, and the one promise between them: a digest never denies what a record has.

use bytes::Bytes;
use proptest::prelude::*;

use super::*;
use crate::limits;

fn filter(text: &str) -> Filter {
    text.parse().unwrap_or_else(|fault| panic!("{fault}"))
}

type Headers = Vec<(String, Bytes)>;

fn headers(pairs: &[(&str, &str)]) -> Headers {
    pairs.iter().map(|(name, value)| (name.to_string(), Bytes::copy_from_slice(value.as_bytes()))).collect()
}

fn matches(filter: &Filter, headers: &Headers) -> bool {
    filter.matches(|name| headers.iter().rfind(|(header, _)| header == name).map(|(_, value)| &value[..]))
}

#[test]
fn the_language_means_what_it_says() {
    let order = headers(&[("ce_type", "order.created"), ("region", "us"), ("region", "eu"), ("odd name", "it's")]);
    for (text, want) in [
        ("ce_type = 'order.created'", true),
        ("ce_type = \"order.created\"", true),
        ("ce_type = 'order'", false),
        ("ce_type ^= 'order.'", true),
        ("ce_type ^= ''", true),
        ("missing ^= ''", false),
        ("ce_type != 'x'", true),
        ("missing != 'x'", true),
        ("region = 'us'", false),
        ("region in ('us', 'eu')", true),
        ("exists(region) and not exists(missing)", true),
        ("EXISTS ( `odd name` )", true),
        ("`odd name` = 'it\\'s'", true),
        ("missing = 'x' or region = 'eu' and ce_type ^= 'order'", true),
        ("(missing = 'x' or region = 'eu') and ce_type = 'x'", false),
        ("not region = 'us' and region = 'eu'", true),
        ("not (region = 'eu' or region = 'us')", false),
        ("not not region = 'eu'", true),
    ] {
        assert_eq!(matches(&filter(text), &order), want, "{text}");
    }
    assert_eq!(filter("b = '1' or not (a = '2' and b in ('3'))").names(), ["a", "b"]);
}

#[test]
fn what_does_not_parse_is_pointed_at() {
    let deep = "(".repeat(33);
    let long = format!("a = '{}'", "x".repeat(limits::FILTER_BYTES_MAX));
    for (text, at, what) in [
        ("", 0, "expected the name of a header, 'not', 'exists' or '(', found the end"),
        ("region = eu", 9, "expected a text in quotes, found the name \"eu\""),
        ("region == 'eu'", 8, "expected a text in quotes, found '='"),
        ("region ~ 'eu'", 7, "'~' has no meaning here"),
        ("region 'eu'", 7, "expected '=', '!=', '^=' or 'in' after the name of a header, found the text \"eu\""),
        ("region ! 'eu'", 8, "expected '=' after '!'"),
        ("region = 'eu", 9, "the quote ' is not closed"),
        ("region in 'eu'", 10, "expected '(' and texts in quotes, found the text \"eu\""),
        ("region in ('eu' 'us')", 16, "expected ',' or ')', found the text \"us\""),
        ("(region = 'eu'", 14, "expected ')', 'and' or 'or', found the end"),
        ("region = 'eu')", 13, "expected the end, 'and' or 'or', found ')'"),
        ("région = 'eu' a = 'b'", 14, "expected 'and' or 'or', found the name \"a\""),
        ("exists region", 7, "expected '(' and the name of a header, found the name \"region\""),
        ("a = 'b' and", 11, "expected the name of a header, 'not', 'exists' or '(', found the end"),
        (&deep, 32, "more than 32 levels of '(' and 'not'"),
        (&long, 0, "it has 4102 bytes, at most 4096 are allowed"),
    ] {
        let fault = text.parse::<Filter>().expect_err(text);
        assert_eq!((fault.at(), fault.what()), (at, what), "{text}");
    }
    let shown = "type = 'a' and source = b".parse::<Filter>().expect_err("no quotes").to_string();
    let want = "the filter does not parse at character 25: expected a text in quotes, found the name \"b\"\n  \
                type = 'a' and source = b\n                          ^";
    assert_eq!(shown, want);
}

fn digest(names: &[&str], records: &[Headers]) -> Bytes {
    let mut builder = DigestBuilder::new(DigestNames::new(names.iter().copied()).expect("names"));
    records.iter().for_each(|record| builder.push(record));
    builder.build()
}

#[test]
fn the_digests_bytes_are_these() {
    assert_eq!(digest(&["a"], &[vec![], vec![]])[..], [1, 1, 0], "no record has a header");
    let one = headers(&[("a", "x"), ("a", "y")]);
    assert_eq!(digest(&["a", "b"], std::slice::from_ref(&one))[..], *b"\x01\x01\x01\x01a\x01\x01\x01y");
    let other = headers(&[("c", "z")]);
    assert_eq!(digest(&["a", "b"], &[one, other])[..], *b"\x01\x00\x02\x01a\x00\x01\x01y\x01b\x00\x00");
    let long = headers(&[("a", &"x".repeat(300))]);
    assert_eq!(digest(&["a"], &[long])[..], *b"\x01\x01\x01\x01a\x03\x00");
}

#[test]
fn a_digest_rules_out_what_it_can() {
    let records = [headers(&[("type", "a"), ("only", "1")]), headers(&[("type", "b"), ("only", "1")])];
    let bytes = digest(&["type", "only"], &records);
    let digest = Digest::decode(&bytes).expect("sound");
    for (text, want) in [
        ("type = 'a'", true),
        ("type = 'c'", false),
        ("type ^= 'c'", false),
        ("type in ('c', 'b')", true),
        ("other = 'x'", false),
        ("not exists(other)", true),
        ("not exists(type)", false),
        ("only != '1'", false),
        ("type != 'a'", true),
        ("type = 'a' and only = '2'", false),
        ("not (type = 'c' or only != '1')", true),
    ] {
        assert_eq!(filter(text).may_match(&digest), want, "{text}");
    }
}

#[test]
fn names_are_bounded() {
    let many: Vec<_> = (0..17).map(|n| n.to_string()).collect();
    let names = |names: &[String]| DigestNames::new(names.iter().map(String::as_str));
    assert_eq!(names(&many), Err(DigestNameError::TooMany(17)));
    assert!(names(&many[..16]).is_ok());
    for bad in [String::new(), "x".repeat(65)] {
        assert_eq!(names(std::slice::from_ref(&bad)), Err(DigestNameError::Length(bad)));
    }
}

fn a_record() -> impl Strategy<Value = Headers> {
    let value = prop_oneof![8 => "[ab]{0,2}", 1 => Just("x".repeat(300))];
    prop::collection::vec(("[a-d]", value.prop_map(Bytes::from)), 0..5)
}

fn a_filter() -> impl Strategy<Value = String> {
    let test = prop_oneof![
        ("[a-e]", "[ab]{0,2}").prop_map(|(name, text)| format!("{name} = '{text}'")),
        ("[a-e]", "[ab]{0,2}").prop_map(|(name, text)| format!("{name} != '{text}'")),
        ("[a-e]", "[ab]{0,1}").prop_map(|(name, text)| format!("{name} ^= '{text}'")),
        ("[a-e]", "[ab]{0,2}", "[ab]").prop_map(|(name, a, b)| format!("{name} in ('{a}', '{b}')")),
        "[a-e]".prop_map(|name| format!("exists({name})")),
    ];
    test.prop_recursive(4, 16, 3, |inner| {
        prop_oneof![
            inner.clone().prop_map(|a| format!("not ({a})")),
            (inner.clone(), inner.clone()).prop_map(|(a, b)| format!("({a}) and ({b})")),
            (inner.clone(), inner).prop_map(|(a, b)| format!("({a}) or {b}")),
        ]
    })
}

proptest! {
    #[test]
    fn no_digest_denies_what_a_record_has(
        text in a_filter(),
        records in prop::collection::vec(a_record(), 1..30),
        names in prop::sample::subsequence(vec!["a", "b", "c", "d"], 0..=4),
    ) {
        let filter = filter(&text);
        let bytes = digest(&names, &records);
        let digest = Digest::decode(&bytes).expect("sound");
        let some = records.iter().any(|record| matches(&filter, record));
        prop_assert!(!some || filter.may_match(&digest), "{} denied by {:?}", text, digest);
        // Of one record whose names are all listed, the digest knows everything but long values.
        if let [record] = &records[..] && names.len() == 4 && record.iter().all(|(_, value)| value.len() < 300) {
            prop_assert_eq!(filter.may_match(&digest), some);
        }
    }

    #[test]
    fn digests_stay_within_their_bound(
        names in prop::collection::vec("[a-z]{1,64}", 1..=16),
        values in prop::collection::vec("[a-z]{0,256}", 1..20),
    ) {
        let names: Vec<&str> = names.iter().map(String::as_str).collect();
        let record = |value: &String| {
            let value = Bytes::from(value.clone());
            names.iter().map(|name| (name.to_string(), value.clone())).collect::<Headers>()
        };
        let records: Vec<_> = values.iter().map(record).collect();
        let bytes = digest(&names, &records);
        prop_assert!(bytes.len() <= limits::DIGEST_BYTES_MAX);
        let digest = Digest::decode(&bytes).expect("sound");
        let wanted = filter(&format!("`{}` = '{}'", names[0], values[0]));
        prop_assert!(wanted.may_match(&digest));
    }

    #[test]
    fn any_bytes_are_decoded_or_refused(bytes in prop::collection::vec(any::<u8>(), 0..200), tail in any::<bool>()) {
        let framed = if tail { [&[1, 1][..], &bytes].concat() } else { bytes };
        if let Ok(digest) = Digest::decode(&framed) {
            let _ = filter("a = 'b' or not exists(c)").may_match(&digest);
        }
    }

    #[test]
    fn any_text_is_parsed_or_refused(text in "[a-c'\"`=!^(), inotexsd\\\\\\PC]{0,60}") {
        if let Err(fault) = text.parse::<Filter>() {
            prop_assert!(fault.at() <= text.chars().count());
            let _ = fault.to_string();
        }
    }
}
