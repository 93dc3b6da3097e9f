//! dest.toml: the destinations of a backup dir, one `[[destination]]` table each.
//!
//! Invariants: no secret stands in it, only where one is to be had, and no message quotes a value that could be one by
//! mistake; what is unknown, double or impossible is one line that names the place, what is wrong and what to do.

use std::path::PathBuf;

use toml::Spanned;
use toml::de::{DeTable, DeValue};

use crate::backupdir::config::parse_size;
use crate::text::shown;

/// Requests in flight to a destination, unless its table says something else.
const DEFAULT_WORKERS: u64 = 4;
const MAX_WORKERS: u64 = 64;
const MAX_NAME_LEN: usize = 32;
/// Keys that every destination may have.
const COMMON: &str = "name, type, workers, rate, onfail, off, verify";
/// What users of other programs write for a secret.
const SECRETS: [&str; 8] =
    ["secret-key", "secret", "password", "secret-access-key", "token", "secret_key", "secret_access_key", "passphrase"];

/// A destination as dest.toml has it.
#[derive(Debug, Clone, PartialEq, Eq)]
pub struct Settings {
    pub name: String,
    pub place: Place,
    /// Requests in flight.
    pub workers: u64,
    /// Bytes a second that are sent at most.
    pub rate: Option<u64>,
    pub on_fail: OnFail,
    /// It is not used by what runs by itself.
    pub off: bool,
    pub verify: Verify,
}

#[derive(Debug, Clone, PartialEq, Eq)]
pub enum Place {
    Dir { path: PathBuf },
    Sftp(Sftp),
    S3(S3),
}

#[derive(Debug, Clone, PartialEq, Eq)]
pub struct Sftp {
    pub host: String,
    pub user: Option<String>,
    pub port: Option<u16>,
    pub path: String,
    /// Words of the command that is run in the place of `ssh`.
    pub ssh_command: Vec<String>,
}

#[derive(Debug, Clone, PartialEq, Eq)]
pub struct S3 {
    /// URL of the service; that of AWS's region if there is none.
    pub endpoint: Option<String>,
    pub bucket: String,
    /// Empty, or ends with `/`.
    pub prefix: String,
    pub region: String,
    pub access_key: Option<String>,
    pub secret: SecretFrom,
    /// Storage class of what is sent.
    pub class: Option<String>,
}

/// Where a secret is to be had.
#[derive(Debug, Clone, PartialEq, Eq)]
pub enum SecretFrom {
    /// AWS_ACCESS_KEY_ID, AWS_SECRET_ACCESS_KEY and AWS_SESSION_TOKEN.
    Aws,
    Variable(String),
    File(PathBuf),
    Command(String),
}

#[derive(Debug, Clone, Copy, PartialEq, Eq)]
pub enum OnFail {
    Report,
    Ignore,
}

/// What has to be compared before an object counts as stored.
#[derive(Debug, Clone, Copy, PartialEq, Eq)]
pub enum Verify {
    /// It is read back.
    Read,
    /// The server's own comparison counts where the server was found to compare; else it is read back.
    Server,
    /// Nothing is compared: it is listed as unverified.
    Trust,
}

impl Settings {
    /// Reads dest.toml; the error says what is wrong, where, and what to do.
    pub fn parse_all(text: &str) -> Result<Vec<Settings>, String> {
        // The error's own text quotes the line.
        let parsed = DeTable::parse(text).map_err(|error| {
            let line = error.span().map_or(1, |span| line_of(text, span.start));
            format!("line {line}: {}", error.message().replace('\n', " "))
        })?;
        let mut all: Vec<Settings> = Vec::new();
        for (key, value) in parsed.get_ref() {
            let line = line_of(text, key.span().start);
            let tables = match value.get_ref() {
                DeValue::Array(tables) if key.get_ref() == "destination" => tables,
                _ => {
                    let key = shown(key.get_ref().as_ref());
                    return Err(format!(
                        "line {line}: `{key}` is not known here: begin a destination with [[destination]]"
                    ));
                }
            };
            for table in tables.iter() {
                let Some(fields) = table.get_ref().as_table() else {
                    return Err(format!("line {line}: begin each destination with a line [[destination]]"));
                };
                let settings = Fields::new(text, fields, line_of(text, table.span().start)).settings()?;
                if all.iter().any(|other| other.name == settings.name) {
                    let line = line_of(text, table.span().start);
                    let name = &settings.name;
                    return Err(format!("line {line}: there are two destinations {name}: give one another name"));
                }
                all.push(settings);
            }
        }
        Ok(all)
    }

    /// `dir`, `sftp`, `s3`.
    pub fn type_name(&self) -> &'static str {
        match self.place {
            Place::Dir { .. } => "dir",
            Place::Sftp(_) => "sftp",
            Place::S3(_) => "s3",
        }
    }

    /// Where it is, for people.
    pub fn place_text(&self) -> String {
        match &self.place {
            Place::Dir { path } => shown(path).to_string(),
            Place::Sftp(sftp) => {
                let user = sftp.user.as_ref().map_or(String::new(), |user| format!("{user}@"));
                let port = sftp.port.map_or(String::new(), |port| format!(":{port}"));
                shown(&format!("sftp://{user}{}{port}/{}", sftp.host, sftp.path)).to_string()
            }
            Place::S3(s3) => {
                let at = s3.endpoint.as_ref().map_or(String::new(), |endpoint| format!(" at {endpoint}"));
                shown(&format!("s3://{}/{}{at}", s3.bucket, s3.prefix)).to_string()
            }
        }
    }
}

/// Lines count from 1.
fn line_of(text: &str, at: usize) -> usize {
    text.bytes().take(at).filter(|byte| *byte == b'\n').count() + 1
}

/// One table, and which of its keys were asked for.
struct Fields<'a> {
    text: &'a str,
    table: &'a DeTable<'a>,
    line: usize,
    asked: Vec<&'static str>,
}

type Field<'a> = (usize, &'a DeValue<'a>);

impl<'a> Fields<'a> {
    fn new(text: &'a str, table: &'a DeTable<'a>, line: usize) -> Fields<'a> {
        Fields { text, table, line, asked: Vec::new() }
    }

    fn settings(mut self) -> Result<Settings, String> {
        let name = self.name()?;
        let (line, kind) = self.needed("type", "\"dir\", \"sftp\" or \"s3\"")?;
        let place = match kind.as_str() {
            "dir" => Place::Dir { path: self.absolute("path", "/mnt/usb/backup")? },
            "sftp" => Place::Sftp(self.sftp()?),
            "s3" => Place::S3(self.s3()?),
            _ => return Err(format!("line {line}: there is no type {}: dir, sftp and s3 are known", shown(&kind))),
        };
        let workers = self.number("workers", 1, MAX_WORKERS)?.unwrap_or(DEFAULT_WORKERS);
        let rate = self.size("rate")?;
        let on_fail = self.choice("onfail", &[("report", OnFail::Report), ("ignore", OnFail::Ignore)])?;
        let off = self.flag("off")?;
        let (choices, usual): (&[_], _) = match place {
            Place::S3(_) => {
                (&[("server", Verify::Server), ("read", Verify::Read), ("trust", Verify::Trust)], Verify::Server)
            }
            _ => (&[("read", Verify::Read), ("trust", Verify::Trust)], Verify::Read),
        };
        let verify = self.choice("verify", choices)?.unwrap_or(usual);
        self.nothing_else(&kind)?;
        Ok(Settings { name, place, workers, rate, on_fail: on_fail.unwrap_or(OnFail::Report), off, verify })
    }

    fn name(&mut self) -> Result<String, String> {
        let (line, name) = self.needed("name", "\"usb\"")?;
        let plain = |c: char| c.is_ascii_alphanumeric() || c == '-' || c == '_';
        let is_good = name.len() <= MAX_NAME_LEN
            && name.chars().all(plain)
            && name.starts_with(|c: char| c.is_ascii_alphanumeric());
        if !is_good {
            return Err(format!(
                "line {line}: the name `{}` has odd characters, or is too long: up to {MAX_NAME_LEN} letters, digits, - and _, \
                 a letter or digit first",
                shown(&name)
            ));
        }
        Ok(name)
    }

    fn sftp(&mut self) -> Result<Sftp, String> {
        let (line, host) = self.needed("host", "\"backup.example.org\"")?;
        let user = self.string("user")?;
        // ssh would take it for an option.
        let odd = |word: &str| word.is_empty() || word.starts_with('-') || word.contains(char::is_whitespace);
        if odd(&host) || user.as_ref().is_some_and(|(_, user)| odd(user) || user.contains('@')) {
            return Err(format!("line {line}: host and user must be names: not empty, without spaces, no - in front"));
        }
        let (line, path) = self.needed("path", "\"backup/laptop\"")?;
        if path.is_empty() || path.contains('\0') {
            return Err(format!("line {line}: path is empty: name a directory on the server"));
        }
        let port = self.number("port", 1, 65535)?.and_then(|port| u16::try_from(port).ok());
        let command = self.string("ssh-command")?.map_or("ssh".into(), |(_, command)| command);
        let ssh_command: Vec<String> = command.split_whitespace().map(String::from).collect();
        if ssh_command.is_empty() {
            return Err(format!("line {line}: ssh-command is empty: leave it out, or say \"ssh -F config\""));
        }
        let path = if path == "/" { path } else { path.trim_end_matches('/').to_string() };
        Ok(Sftp { host, user: user.map(|(_, user)| user), port, path, ssh_command })
    }

    fn s3(&mut self) -> Result<S3, String> {
        let endpoint = self.string("endpoint")?;
        if let Some((line, url)) = &endpoint {
            let rest = url.strip_prefix("https://").or_else(|| url.strip_prefix("http://"));
            if !rest.is_some_and(|rest| !rest.is_empty() && !rest.contains(['@', '?', '#', ' '])) {
                return Err(format!(
                    "line {line}: endpoint is no URL: say \"https://s3.example.org\", without user and query"
                ));
            }
        }
        let (line, bucket) = self.needed("bucket", "\"my-backups\"")?;
        let plain = |c: char| c.is_ascii_alphanumeric() || matches!(c, '-' | '.' | '_');
        if !(3..=63).contains(&bucket.len()) || !bucket.chars().all(plain) {
            return Err(format!("line {line}: this is no name of a bucket: 3 to 63 letters, digits, -, _ and ."));
        }
        let prefix = match self.string("prefix")? {
            None => String::new(),
            Some((line, prefix)) => {
                let prefix = prefix.trim_matches('/');
                let good = |part: &str| !matches!(part, "" | "." | "..") && part.chars().all(plain);
                if !prefix.is_empty() && !prefix.split('/').all(good) {
                    return Err(format!(
                        "line {line}: the prefix has odd characters: letters, digits, -, _, . and / are taken"
                    ));
                }
                if prefix.is_empty() { String::new() } else { format!("{prefix}/") }
            }
        };
        let region = self.string("region")?.map_or("us-east-1".into(), |(_, region)| region);
        let access_key = self.string("access-key")?.map(|(_, key)| key);
        let (secret, class) = (self.secret(access_key.is_some())?, self.string("class")?.map(|(_, class)| class));
        let endpoint = endpoint.map(|(_, url)| url.trim_end_matches('/').to_string());
        Ok(S3 { endpoint, bucket, prefix, region, access_key, secret, class })
    }

    fn secret(&mut self, has_access_key: bool) -> Result<SecretFrom, String> {
        let variable = self.string("secret-key-env")?.map(|(_, name)| SecretFrom::Variable(name));
        let file = match self.string("secret-key-file")? {
            Some(_) => Some(SecretFrom::File(self.absolute("secret-key-file", "/etc/assay/b2-key")?)),
            None => None,
        };
        let command = self.string("credential-command")?.map(|(_, command)| SecretFrom::Command(command));
        let line = self.line;
        let mut given = [variable, file, command].into_iter().flatten();
        match (given.next(), given.next()) {
            (None, _) if has_access_key => Err(format!(
                "line {line}: access-key needs its secret: say secret-key-env, secret-key-file or credential-command"
            )),
            (None, _) => Ok(SecretFrom::Aws),
            (Some(one), None) => Ok(one),
            (Some(_), Some(_)) => {
                Err(format!("line {line}: say only one of secret-key-env, secret-key-file and credential-command"))
            }
        }
    }

    fn get(&mut self, key: &'static str) -> Option<Field<'a>> {
        self.asked.push(key);
        let (key, value) = self.table.get_key_value(key)?;
        Some((line_of(self.text, Spanned::span(key).start), value.get_ref()))
    }

    fn string(&mut self, key: &'static str) -> Result<Option<(usize, String)>, String> {
        match self.get(key) {
            None => Ok(None),
            Some((line, DeValue::String(text))) => Ok(Some((line, text.to_string()))),
            Some((line, _)) => Err(format!("line {line}: {key} must be a text in quotes")),
        }
    }

    fn needed(&mut self, key: &'static str, example: &str) -> Result<(usize, String), String> {
        let line = self.line;
        self.string(key)?.ok_or_else(|| format!("line {line}: this destination has no {key}: add {key} = {example}"))
    }

    fn absolute(&mut self, key: &'static str, example: &str) -> Result<PathBuf, String> {
        let (line, path) = self.needed(key, &format!("\"{example}\""))?;
        if !path.starts_with('/') || path.contains('\0') {
            return Err(format!("line {line}: {key} must be an absolute path, as \"{example}\""));
        }
        Ok(path.into())
    }

    fn number(&mut self, key: &'static str, low: u64, high: u64) -> Result<Option<u64>, String> {
        let Some((line, value)) = self.get(key) else { return Ok(None) };
        let number = value.as_integer().filter(|number| number.radix() == 10);
        let number =
            number.and_then(|number| number.as_str().parse().ok()).filter(|number| (low..=high).contains(number));
        number.map(Some).ok_or_else(|| format!("line {line}: {key} must be a number between {low} and {high}"))
    }

    fn size(&mut self, key: &'static str) -> Result<Option<u64>, String> {
        let Some((line, text)) = self.string(key)? else { return Ok(None) };
        match parse_size(&text) {
            Ok(bytes) if bytes > 0 => Ok(Some(bytes)),
            _ => Err(format!("line {line}: {key} must be bytes a second, as \"500k\" or \"20M\"")),
        }
    }

    fn flag(&mut self, key: &'static str) -> Result<bool, String> {
        match self.get(key) {
            None => Ok(false),
            Some((_, DeValue::Boolean(flag))) => Ok(*flag),
            Some((line, _)) => Err(format!("line {line}: {key} must be true or false, without quotes")),
        }
    }

    fn choice<T: Copy>(&mut self, key: &'static str, choices: &[(&str, T)]) -> Result<Option<T>, String> {
        let Some((line, word)) = self.string(key)? else { return Ok(None) };
        let words: Vec<String> = choices.iter().map(|(word, _)| format!("\"{word}\"")).collect();
        match choices.iter().find(|(known, _)| *known == word) {
            Some((_, value)) => Ok(Some(*value)),
            None => Err(format!("line {line}: {key} must be {} here", words.join(" or "))),
        }
    }

    fn nothing_else(&self, kind: &str) -> Result<(), String> {
        let Some((key, _)) = self.table.iter().find(|(key, _)| !self.asked.contains(&key.get_ref().as_ref())) else {
            return Ok(());
        };
        let (line, key) = (line_of(self.text, key.span().start), key.get_ref().as_ref());
        if SECRETS.contains(&key) {
            return Err(format!(
                "line {line}: secrets don't stand in dest.toml: name a file or variable that has it, by secret-key-file or \
                 secret-key-env, or a credential-command"
            ));
        }
        let own: Vec<&str> =
            self.asked.iter().copied().filter(|key| !COMMON.split(", ").any(|word| word == *key)).collect();
        Err(format!(
            "line {line}: a destination of type {kind} has no setting `{}`: it knows {COMMON}, {}",
            shown(key),
            own.join(", ")
        ))
    }
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn what_is_left_out_gets_its_default() {
        let text = "# two\n[[destination]]\nname = \"usb\"\ntype = \"dir\"\npath = \"/mnt/usb\"\n\n\
                    [[destination]]\nname = \"cloud-2\"\ntype = \"s3\"\nbucket = \"my-backups\"\nprefix = \"/a/b/\"\n\
                    endpoint = \"https://s3.example.org/\"\naccess-key = \"id\"\nsecret-key-file = \"/etc/k\"\n\
                    workers = 8\nrate = \"2M\"\nonfail = \"ignore\"\noff = true\nverify = \"trust\"\nclass = \"STANDARD_IA\"\n";
        let all = Settings::parse_all(text).unwrap();
        let [usb, cloud] = all.as_slice() else { panic!("{all:?}") };
        assert_eq!(usb.place, Place::Dir { path: "/mnt/usb".into() });
        assert_eq!((usb.workers, usb.rate, usb.on_fail, usb.off), (DEFAULT_WORKERS, None, OnFail::Report, false));
        assert_eq!((usb.verify, cloud.verify), (Verify::Read, Verify::Trust));
        assert_eq!((cloud.workers, cloud.rate, cloud.on_fail, cloud.off), (8, Some(2 << 20), OnFail::Ignore, true));
        let Place::S3(s3) = &cloud.place else { panic!("{cloud:?}") };
        assert_eq!((s3.prefix.as_str(), s3.endpoint.as_deref()), ("a/b/", Some("https://s3.example.org")));
        assert_eq!((&s3.secret, s3.class.as_deref()), (&SecretFrom::File("/etc/k".into()), Some("STANDARD_IA")));
        assert_eq!(cloud.place_text(), "s3://my-backups/a/b/ at https://s3.example.org");
        for none in ["", "# Destinations: none yet.\n"] {
            assert_eq!(Settings::parse_all(none), Ok(Vec::new()));
        }
    }

    #[test]
    fn sftp_is_the_users_ssh() {
        let text = "[[destination]]\nname = \"home\"\ntype = \"sftp\"\nhost = \"h\"\nuser = \"u\"\nport = 2222\npath = \"b/\"\n\
                    ssh-command = \"ssh -F /x\"";
        let all = Settings::parse_all(text).unwrap();
        assert_eq!(all[0].place_text(), "sftp://u@h:2222/b");
        let Place::Sftp(sftp) = &all[0].place else { panic!("{all:?}") };
        assert_eq!(sftp.ssh_command, ["ssh", "-F", "/x"]);
    }

    /// Each line that is wrong, in a table that is right but for it: the line's number and a word of the remedy.
    #[test]
    fn what_is_wrong_is_one_line_with_its_place_and_remedy() {
        let dir = "name = \"usb\"\ntype = \"dir\"\npath = \"/p\"\n";
        let s3 = "name = \"c\"\ntype = \"s3\"\nbucket = \"bucket\"\n";
        let sftp = "name = \"s\"\ntype = \"sftp\"\nhost = \"h\"\npath = \"p\"\n";
        let cases = [
            (dir, "pth = \"/q\"", "line 5:", "path"),
            (dir, "bucket = \"b\"", "line 5:", "type dir has no setting `bucket`"),
            (dir, "workers = 0", "line 5:", "between 1 and 64"),
            (dir, "workers = \"4\"", "line 5:", "number"),
            (dir, "rate = \"fast\"", "line 5:", "500k"),
            (dir, "onfail = \"maybe\"", "line 5:", "\"ignore\""),
            (dir, "off = \"yes\"", "line 5:", "true or false"),
            (dir, "verify = \"server\"", "line 5:", "\"read\" or \"trust\""),
            (s3, "endpoint = \"s3.example.org\"", "line 5:", "https://"),
            (s3, "endpoint = \"https://me:hunter2@host\"", "line 5:", "without user"),
            (s3, "prefix = \"a/../b\"", "line 5:", "odd characters"),
            (s3, "access-key = \"id\"", "line 1:", "secret-key-file"),
            (s3, "secret-key = \"hunter2\"", "line 5:", "secret-key-env"),
            (s3, "secret-key-file = \"key\"", "line 5:", "absolute"),
            (s3, "secret-key-env = [\"hunter2\"]", "line 5:", "text in quotes"),
            (s3, "secret-key-env = \"A\"\ncredential-command = \"b\"", "line 1:", "only one"),
            (sftp, "user = \"-oProxyCommand=x\"", "line 4:", "no - in front"),
            (sftp, "port = 70000", "line 6:", "65535"),
            (sftp, "ssh-command = \" \"", "line", "leave it out"),
            (dir, "broken = ", "line 5:", ""),
            (dir, "path = \"/again\"", "line 5:", "duplicate"),
        ];
        for (good, bad, place, remedy) in cases {
            let text = format!("[[destination]]\n{good}{bad}\n");
            let error = Settings::parse_all(&text).unwrap_err();
            assert!(error.contains(place) && error.contains(remedy) && !error.contains('\n'), "{bad}: {error}");
            assert!(!error.contains("hunter2"), "{error}");
        }
        for name in ["", "a b", "../x", "-x", "ü", "a\\u0000", &"x".repeat(33)] {
            let text = format!("[[destination]]\nname = \"{name}\"\ntype = \"dir\"\npath = \"/p\"\n");
            assert!(Settings::parse_all(&text).unwrap_err().contains("odd characters"), "{name}");
        }
        let twice = format!("[[destination]]\n{dir}[[destination]]\n{dir}");
        assert_eq!(
            Settings::parse_all(&twice).unwrap_err(),
            "line 5: there are two destinations usb: give one another name"
        );
        for (text, word) in [
            ("[destination]\nname = \"a\"", "[[destination]]"),
            ("x = 1", "`x`"),
            ("[[destination]]\ntype = \"dir\"", "add name ="),
            ("[[destination]]\nname = \"a\"\ntype = \"ftp\"", "no type ftp"),
            ("destination = [1]", "[[destination]]"),
        ] {
            assert!(Settings::parse_all(text).unwrap_err().contains(word), "{text}");
        }
    }
}
