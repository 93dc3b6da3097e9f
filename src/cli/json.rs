//! Names in JSON: exact for every name, and a plain string for all but a few.
//!
//! Invariants: a name that is UTF-8 is that string, escaped by JSON's own rules and no other; any other name is shown as
//! in messages, and its bytes stand beside it in base64, under the same key with `_bytes` behind it.

use base64ct::{Base64, Encoding};
use serde_json::{Map, Value};

use crate::text::{Name, shown};

/// `object` with a name in it.
pub fn with_name<N: Name + ?Sized>(object: Value, key: &str, name: &N) -> Value {
    let mut fields = fields(object);
    if let Some(bytes) = exact(name) {
        fields.insert(format!("{key}_bytes"), bytes);
    }
    fields.insert(key.into(), text(name));
    Value::Object(fields)
}

/// `object` with an array of names in it; the array beside it, where one is needed, has null for names that are UTF-8.
pub fn with_names<N: Name>(object: Value, key: &str, names: &[N]) -> Value {
    let mut fields = fields(object);
    let bytes: Vec<Option<Value>> = names.iter().map(exact).collect();
    if bytes.iter().any(Option::is_some) {
        fields.insert(format!("{key}_bytes"), bytes.into_iter().map(Option::unwrap_or_default).collect());
    }
    fields.insert(key.into(), names.iter().map(text).collect());
    Value::Object(fields)
}

fn fields(object: Value) -> Map<String, Value> {
    match object {
        Value::Object(fields) => fields,
        other => Map::from_iter([("value".to_string(), other)]),
    }
}

fn text<N: Name + ?Sized>(name: &N) -> Value {
    match std::str::from_utf8(name.as_name()) {
        Ok(text) => text.into(),
        Err(_) => shown(name).to_string().into(),
    }
}

/// The bytes of a name that is not UTF-8.
fn exact<N: Name + ?Sized>(name: &N) -> Option<Value> {
    let bytes = name.as_name();
    std::str::from_utf8(bytes).is_err().then(|| Base64::encode_string(bytes).into())
}

#[cfg(test)]
mod tests {
    use serde_json::json;

    use super::*;

    #[test]
    fn names_come_back_as_they_are() {
        assert_eq!(with_name(json!({}), "path", "a\nb").to_string(), r#"{"path":"a\nb"}"#);
        assert_eq!(with_name(json!({}), "path", r"a\x0ab").to_string(), r#"{"path":"a\\x0ab"}"#);
        let odd = with_name(json!({"n": 1}), "path", &b"a\xff"[..]);
        assert_eq!(odd, json!({"n": 1, "path": r"a\xff", "path_bytes": "Yf8="}));
        let all = with_names(json!({}), "paths", &[&b"a"[..], b"\xff"]);
        assert_eq!(all, json!({"paths": ["a", r"\xff"], "paths_bytes": [null, "/w=="]}));
        assert_eq!(with_names(json!({}), "paths", &[&b"a"[..]]), json!({"paths": ["a"]}));
    }
}
