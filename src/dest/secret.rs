//! Secrets of destinations: where they are from, and nowhere else than in memory that is wiped.
//!
//! Invariants: a secret is in no message and no `Debug`; the library does not read the environment: who calls gives a
//! function that does.

use std::fmt;
use std::io::Read;
use std::path::Path;
use std::process::{Command, Stdio};

use serde::Deserialize;
use zeroize::Zeroizing;

use super::settings::{Azure, Gcs, S3, SecretFrom, WebDav};
use super::trouble;
use crate::error::{Result, Trouble, io_text};
use crate::os::file;
use crate::text::shown;

/// Longest answer of a file or command, bytes.
const MAX_BYTES: u64 = 64 << 10;

/// A variable of the environment.
pub type Variables<'a> = &'a dyn Fn(&str) -> Option<String>;

/// A secret, wiped when it is not needed any more.
pub type Secret = Zeroizing<String>;

/// What an S3 service knows us by.
#[derive(Clone, PartialEq, Eq)]
pub struct Credentials {
    pub access_key: String,
    pub secret: Secret,
    pub token: Option<Secret>,
}

impl fmt::Debug for Credentials {
    fn fmt(&self, f: &mut fmt::Formatter<'_>) -> fmt::Result {
        f.debug_struct("Credentials").field("access_key", &self.access_key).finish_non_exhaustive()
    }
}

/// What AWS's `credential_process` prints.
#[derive(Deserialize)]
#[serde(rename_all = "PascalCase")]
struct Printed {
    access_key_id: String,
    secret_access_key: String,
    session_token: Option<String>,
}

impl Credentials {
    /// # Errors
    /// `Denied`, with what could not be had and from where.
    pub fn find(dest: &str, s3: &S3, variables: Variables<'_>) -> Result<Credentials> {
        let denied = |what: &str| trouble(dest, "", Trouble::Denied(what.into()));
        let Some(text) = find(dest, &s3.secret, variables)? else {
            let needed = |name: &str| variable(dest, name, variables);
            let token = variables("AWS_SESSION_TOKEN").filter(|token| !token.is_empty()).map(Zeroizing::new);
            let (access_key, secret) = (needed("AWS_ACCESS_KEY_ID")?.to_string(), needed("AWS_SECRET_ACCESS_KEY")?);
            return Ok(Credentials { access_key, secret, token });
        };
        if text.trim().starts_with('{') {
            // The error's own text quotes what it met.
            let printed: Printed = serde_json::from_str(text.trim())
                .map_err(|_| denied("the credentials are no JSON of AWS's credential_process"))?;
            return Ok(Credentials {
                access_key: printed.access_key_id,
                secret: Zeroizing::new(printed.secret_access_key),
                token: printed.session_token.map(Zeroizing::new),
            });
        }
        let Some(access_key) = s3.access_key.clone() else {
            return Err(denied("there is a secret, and no access-key in dest.toml that it belongs to"));
        };
        Ok(Credentials { access_key, secret: word(dest, &text)?, token: None })
    }
}

/// The password of a WebDAV server's user; None where there is no user.
///
/// # Errors
/// `Denied`, as all of these.
pub fn of_webdav(dest: &str, webdav: &WebDav, variables: Variables<'_>) -> Result<Option<Secret>> {
    let text = find(dest, &webdav.password, variables)?;
    // Spaces may belong to it.
    Ok(text.map(|text| Zeroizing::new(text.trim_end_matches(['\n', '\r']).to_string())))
}

/// The key of an Azure account, or a shared access signature.
pub fn of_azure(dest: &str, azure: &Azure, variables: Variables<'_>) -> Result<Secret> {
    let usual = ["AZURE_STORAGE_KEY", "AZURE_STORAGE_SAS_TOKEN"];
    let is_set = |name: &&str| variables(name).is_some_and(|value| !value.is_empty());
    match find(dest, &azure.secret, variables)? {
        Some(text) => word(dest, &text),
        None => {
            let name = usual.into_iter().find(is_set).unwrap_or("AZURE_STORAGE_KEY");
            word(dest, &variable(dest, name, variables)?)
        }
    }
}

/// The JSON of a Google service account; None for another endpoint where none is named.
pub fn of_gcs(dest: &str, gcs: &Gcs, variables: Variables<'_>) -> Result<Option<Secret>> {
    const USUAL: &str = "GOOGLE_APPLICATION_CREDENTIALS";
    match find(dest, &gcs.secret, variables)? {
        None if gcs.endpoint.is_some() && variables(USUAL).is_none_or(|path| path.is_empty()) => Ok(None),
        None => Ok(Some(of_file(dest, Path::new(variable(dest, USUAL, variables)?.as_str()))?)),
        found => Ok(found),
    }
}

/// What dest.toml says where to find; None where it does not say.
fn find(dest: &str, from: &SecretFrom, variables: Variables<'_>) -> Result<Option<Secret>> {
    match from {
        SecretFrom::Usual => Ok(None),
        SecretFrom::Variable(name) => variable(dest, name, variables).map(Some),
        SecretFrom::File(path) => of_file(dest, path).map(Some),
        SecretFrom::Command(command) => {
            let denied = |what: String| trouble(dest, "", Trouble::Denied(format!("credential-command: {what}")));
            of_command(command).map_err(denied).map(Some)
        }
    }
}

fn variable(dest: &str, name: &str, variables: Variables<'_>) -> Result<Secret> {
    let value = variables(name).filter(|value| !value.is_empty()).map(Zeroizing::new);
    value.ok_or_else(|| trouble(dest, "", Trouble::Denied(format!("the variable {} is not set", shown(name)))))
}

fn of_file(dest: &str, path: &Path) -> Result<Secret> {
    let denied = |error: std::io::Error| {
        trouble(dest, "", Trouble::Denied(format!("the file of the secret, {}: {}", shown(path), io_text(&error))))
    };
    file::open_named(path).and_then(read_text).map_err(denied)
}

fn word(dest: &str, text: &str) -> Result<Secret> {
    let secret = text.trim();
    if secret.is_empty() || secret.contains(char::is_whitespace) {
        return Err(trouble(dest, "", Trouble::Denied("the secret is empty, or more than one word".into())));
    }
    Ok(Zeroizing::new(secret.to_string()))
}

fn read_text(source: impl Read) -> std::io::Result<Zeroizing<String>> {
    // Room for all of it: a buffer that grows leaves copies behind.
    let mut text = Zeroizing::new(String::with_capacity(MAX_BYTES as usize + 1));
    source.take(MAX_BYTES).read_to_string(&mut text)?;
    Ok(text)
}

fn of_command(command: &str) -> Result<Zeroizing<String>, String> {
    let io = |error: std::io::Error| io_text(&error);
    let mut child =
        Command::new("sh").args(["-c", command]).stdin(Stdio::null()).stdout(Stdio::piped()).spawn().map_err(io)?;
    let text = child.stdout.take().map(read_text);
    let status = child.wait().map_err(io)?;
    match text {
        _ if !status.success() => Err(format!("it ended with {status}")),
        Some(text) => text.map_err(io),
        None => Err("it has no output".into()),
    }
}

#[cfg(test)]
mod tests {
    use super::*;

    fn s3(access_key: Option<&str>, secret: SecretFrom) -> S3 {
        S3 {
            endpoint: None,
            bucket: "bucket".into(),
            prefix: String::new(),
            region: "r".into(),
            access_key: access_key.map(String::from),
            secret,
            class: None,
        }
    }

    #[test]
    fn secrets_come_from_where_dest_toml_says_and_appear_nowhere() {
        let temp = tempfile::tempdir().unwrap();
        let path = temp.path().join("key");
        std::fs::write(&path, "hunter2\n").unwrap();
        let variables = |name: &str| match name {
            "KEY" | "AWS_SECRET_ACCESS_KEY" => Some("hunter2".to_string()),
            "AWS_ACCESS_KEY_ID" => Some("id".to_string()),
            _ => None,
        };
        let json = r#"echo '{"Version":1,"AccessKeyId":"id","SecretAccessKey":"hunter2","SessionToken":"t"}'"#;
        for (access_key, from, token) in [
            (Some("id"), SecretFrom::Variable("KEY".into()), None),
            (Some("id"), SecretFrom::File(path.clone()), None),
            (Some("id"), SecretFrom::Command("echo hunter2".into()), None),
            (None, SecretFrom::Command(json.into()), Some("t")),
            (None, SecretFrom::Usual, None),
        ] {
            let found = Credentials::find("d", &s3(access_key, from.clone()), &variables).unwrap();
            let token = token.map(|token: &str| Zeroizing::new(token.to_string()));
            assert_eq!(found, Credentials { access_key: "id".into(), secret: "hunter2".to_string().into(), token });
            assert!(!format!("{found:?}").contains("hunter2"));
        }
        std::fs::write(&path, "hunter2 hunter2").unwrap();
        for (access_key, from, word) in [
            (Some("id"), SecretFrom::Variable("NONE".into()), "NONE is not set"),
            (None, SecretFrom::Variable("KEY".into()), "no access-key"),
            (Some("id"), SecretFrom::File("/nowhere".into()), "/nowhere"),
            (Some("id"), SecretFrom::File(path), "more than one word"),
            (Some("id"), SecretFrom::Command("echo hunter2; exit 3".into()), "3"),
            (Some("id"), SecretFrom::Command("echo '{hunter2'".into()), "no JSON"),
        ] {
            let error = Credentials::find("d", &s3(access_key, from), &variables).unwrap_err();
            let text = format!("{error} {error:?}");
            assert!(error.code() == "DEST_DENIED" && text.contains(word) && !text.contains("hunter2"), "{text}");
        }
    }
    #[test]
    fn each_service_has_its_usual_variables() {
        let temp = tempfile::tempdir().unwrap();
        let path = temp.path().join("secret");
        std::fs::write(&path, " hunter2 \n").unwrap();
        let file = || SecretFrom::File(path.clone());
        let set = |name: &'static str, value: &str| {
            let value = value.to_string();
            move |asked: &str| (asked == name).then(|| value.clone())
        };
        let secret = |text: &str| Zeroizing::new(text.to_string());

        let webdav = |password| WebDav { url: "https://h".into(), user: Some("me".into()), password };
        assert_eq!(of_webdav("d", &webdav(file()), &|_| None).unwrap(), Some(secret(" hunter2 ")));
        assert_eq!(of_webdav("d", &webdav(SecretFrom::Usual), &|_| None).unwrap(), None);
        let from = SecretFrom::Variable("P".into());
        assert_eq!(of_webdav("d", &webdav(from.clone()), &set("P", "hunter2")).unwrap(), Some(secret("hunter2")));
        assert_eq!(of_webdav("d", &webdav(from), &|_| None).unwrap_err().code(), "DEST_DENIED");

        let azure = |secret| Azure {
            endpoint: None,
            account: "mine".into(),
            container: "backups".into(),
            prefix: String::new(),
            secret,
            class: None,
        };
        assert_eq!(of_azure("d", &azure(file()), &|_| None).unwrap(), secret("hunter2"));
        for name in ["AZURE_STORAGE_KEY", "AZURE_STORAGE_SAS_TOKEN"] {
            assert_eq!(of_azure("d", &azure(SecretFrom::Usual), &set(name, "hunter2")).unwrap(), secret("hunter2"));
        }
        let none = of_azure("d", &azure(SecretFrom::Usual), &|_| None).unwrap_err();
        assert!(none.code() == "DEST_DENIED" && none.to_string().contains("AZURE_STORAGE_KEY"), "{none}");

        let gcs = |endpoint: Option<&str>, secret| Gcs {
            endpoint: endpoint.map(String::from),
            bucket: "bucket".into(),
            prefix: String::new(),
            secret,
            class: None,
        };
        let usual = set("GOOGLE_APPLICATION_CREDENTIALS", path.to_str().unwrap());
        for (endpoint, from) in [(None, SecretFrom::Usual), (Some("http://h"), SecretFrom::Usual), (None, file())] {
            assert_eq!(of_gcs("d", &gcs(endpoint, from), &usual).unwrap(), Some(secret(" hunter2 \n")));
        }
        assert_eq!(of_gcs("d", &gcs(Some("http://h"), SecretFrom::Usual), &|_| None).unwrap(), None);
        let none = of_gcs("d", &gcs(None, SecretFrom::Usual), &|_| None).unwrap_err();
        assert!(none.code() == "DEST_DENIED" && none.to_string().contains("GOOGLE_APPLICATION"), "{none}");
        let lost = set("GOOGLE_APPLICATION_CREDENTIALS", "/nowhere/key.json");
        let none = of_gcs("d", &gcs(None, SecretFrom::Usual), &lost).unwrap_err();
        assert!(none.code() == "DEST_DENIED" && none.to_string().contains("/nowhere/key.json"), "{none}");
    }
}
