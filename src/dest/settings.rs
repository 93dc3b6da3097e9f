//! dest.toml: the destinations of a backup dir, one `[[destination]]` table each.
//!
//! Invariants: no secret stands in it, only where one is to be had, and no message quotes a value that could be one by
//! mistake; what is unknown, double or impossible is one line that names the place, what is wrong and what to do.

use std::path::PathBuf;

use toml::de::{DeTable, DeValue};

use super::Lie;
use super::fields::{Fields, line_of};
use crate::text::shown;

/// Requests in flight to a destination, unless its table says something else.
const DEFAULT_WORKERS: u64 = 4;
const MAX_WORKERS: u64 = 64;
const MAX_NAME_LEN: usize = 32;

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
    WebDav(WebDav),
    Azure(Azure),
    Gcs(Gcs),
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

#[derive(Debug, Clone, PartialEq, Eq)]
pub struct WebDav {
    /// Of the collection, without a `/` at its end.
    pub url: String,
    pub user: Option<String>,
    pub password: SecretFrom,
}

#[derive(Debug, Clone, PartialEq, Eq)]
pub struct Azure {
    /// URL of the account; Microsoft's own if there is none.
    pub endpoint: Option<String>,
    pub account: String,
    pub container: String,
    /// Empty, or ends with `/`.
    pub prefix: String,
    pub secret: SecretFrom,
    /// Access tier of what is sent.
    pub class: Option<String>,
}

#[derive(Debug, Clone, PartialEq, Eq)]
pub struct Gcs {
    /// URL of the service; Google's own if there is none.
    pub endpoint: Option<String>,
    pub bucket: String,
    /// Empty, or ends with `/`.
    pub prefix: String,
    pub secret: SecretFrom,
    /// Storage class of what is sent.
    pub class: Option<String>,
}

/// Where a secret is to be had.
#[derive(Debug, Clone, PartialEq, Eq)]
pub enum SecretFrom {
    /// Nothing is said: the variables that the service's own tools read.
    Usual,
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

    /// As it is written in dest.toml.
    pub fn type_name(&self) -> &'static str {
        match self.place {
            Place::Dir { .. } => "dir",
            Place::Sftp(_) => "sftp",
            Place::S3(_) => "s3",
            Place::WebDav(_) => "webdav",
            Place::Azure(_) => "azure",
            Place::Gcs(_) => "gcs",
        }
    }

    /// Where it is, for people.
    pub fn place_text(&self) -> String {
        let at = |kind: &str, bucket: &str, prefix: &str, endpoint: &Option<String>| {
            let at = endpoint.as_ref().map_or(String::new(), |endpoint| format!(" at {endpoint}"));
            shown(&format!("{kind}://{bucket}/{prefix}{at}")).to_string()
        };
        match &self.place {
            Place::Dir { path } => shown(path).to_string(),
            Place::Sftp(sftp) => {
                let user = sftp.user.as_ref().map_or(String::new(), |user| format!("{user}@"));
                let port = sftp.port.map_or(String::new(), |port| format!(":{port}"));
                shown(&format!("sftp://{user}{}{port}/{}", sftp.host, sftp.path)).to_string()
            }
            Place::S3(s3) => at("s3", &s3.bucket, &s3.prefix, &s3.endpoint),
            Place::WebDav(webdav) => shown(&webdav.url).to_string(),
            Place::Azure(azure) => {
                at("azure", &format!("{}/{}", azure.account, azure.container), &azure.prefix, &azure.endpoint)
            }
            Place::Gcs(gcs) => at("gs", &gcs.bucket, &gcs.prefix, &gcs.endpoint),
        }
    }

    /// The checksum by which the service can prove what it has stored, if it refuses a wrong one.
    pub fn checksum(&self) -> Option<Lie> {
        match self.place {
            Place::S3(_) => Some(Lie::Sha256),
            Place::Azure(_) | Place::Gcs(_) => Some(Lie::Md5),
            Place::Dir { .. } | Place::Sftp(_) | Place::WebDav(_) => None,
        }
    }
}

const TYPES: &str = "dir, sftp, s3, webdav, azure and gcs";

impl Fields<'_> {
    fn settings(mut self) -> Result<Settings, String> {
        let name = self.name()?;
        let (line, kind) = self.needed("type", "\"dir\" (others: sftp, s3, webdav, azure, gcs)")?;
        let place = match kind.as_str() {
            "dir" => Place::Dir { path: self.absolute("path", "/mnt/usb/backup")? },
            "sftp" => Place::Sftp(self.sftp()?),
            "s3" => Place::S3(self.s3()?),
            "webdav" => Place::WebDav(self.webdav()?),
            "azure" => Place::Azure(self.azure()?),
            "gcs" => Place::Gcs(self.gcs()?),
            _ => return Err(format!("line {line}: there is no type {}: {TYPES} are known", shown(&kind))),
        };
        let workers = self.number("workers", 1, MAX_WORKERS)?.unwrap_or(DEFAULT_WORKERS);
        let rate = self.size("rate")?;
        let on_fail = self.choice("onfail", &[("report", OnFail::Report), ("ignore", OnFail::Ignore)])?;
        let off = self.flag("off")?;
        let on_fail = on_fail.unwrap_or(OnFail::Report);
        let mut settings = Settings { name, place, workers, rate, on_fail, off, verify: Verify::Read };
        let choices = [("server", Verify::Server), ("read", Verify::Read), ("trust", Verify::Trust)];
        // The first one is the usual one.
        let choices = if settings.checksum().is_some() { &choices[..] } else { &choices[1..] };
        let usual = choices.first().map_or(Verify::Read, |(_, verify)| *verify);
        settings.verify = self.choice("verify", choices)?.unwrap_or(usual);
        self.nothing_else(&kind)?;
        Ok(settings)
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
        let (endpoint, bucket, prefix) = (self.endpoint()?, self.bucket("bucket")?, self.prefix()?);
        let region = self.string("region")?.map_or("us-east-1".into(), |(_, region)| region);
        let access_key = self.string("access-key")?.map(|(_, key)| key);
        let (secret, class) = (self.secret(["secret-key-env", "secret-key-file"])?, self.class()?);
        if access_key.is_some() && secret == SecretFrom::Usual {
            let line = self.line;
            return Err(format!(
                "line {line}: access-key needs its secret: say secret-key-env, secret-key-file or credential-command"
            ));
        }
        Ok(S3 { endpoint, bucket, prefix, region, access_key, secret, class })
    }

    fn webdav(&mut self) -> Result<WebDav, String> {
        let line = self.line;
        let url = self.url("url")?.ok_or_else(|| {
            format!("line {line}: this destination has no url: add url = \"https://cloud.example.org/dav/backups\"")
        })?;
        let user = self.string("user")?;
        if let Some((line, _)) = user.as_ref().filter(|(_, user)| user.is_empty() || user.contains([':', '\n'])) {
            return Err(format!("line {line}: user must be a name: not empty, without `:`"));
        }
        let password = self.secret(["password-env", "password-file"])?;
        if user.is_some() != (password != SecretFrom::Usual) {
            return Err(format!(
                "line {line}: user and password come together: say user, and password-env, password-file or credential-command"
            ));
        }
        Ok(WebDav { url, user: user.map(|(_, user)| user), password })
    }

    fn azure(&mut self) -> Result<Azure, String> {
        let endpoint = self.endpoint()?;
        let (line, account) = self.needed("account", "\"mybackups\"")?;
        let plain = |c: char| c.is_ascii_lowercase() || c.is_ascii_digit();
        if !(3..=24).contains(&account.len()) || !account.chars().all(plain) {
            return Err(format!("line {line}: this is no name of an account: 3 to 24 small letters and digits"));
        }
        let (container, prefix) = (self.bucket("container")?, self.prefix()?);
        let (secret, class) = (self.secret(["secret-key-env", "secret-key-file"])?, self.class()?);
        Ok(Azure { endpoint, account, container, prefix, secret, class })
    }

    fn gcs(&mut self) -> Result<Gcs, String> {
        let (endpoint, bucket, prefix) = (self.endpoint()?, self.bucket("bucket")?, self.prefix()?);
        let (secret, class) = (self.secret(["credential-env", "credential-file"])?, self.class()?);
        Ok(Gcs { endpoint, bucket, prefix, secret, class })
    }

    fn endpoint(&mut self) -> Result<Option<String>, String> {
        self.url("endpoint")
    }

    fn class(&mut self) -> Result<Option<String>, String> {
        Ok(self.string("class")?.map(|(_, class)| class))
    }

    /// Without a `/` at its end.
    fn url(&mut self, key: &'static str) -> Result<Option<String>, String> {
        let Some((line, url)) = self.string(key)? else { return Ok(None) };
        let rest = url.strip_prefix("https://").or_else(|| url.strip_prefix("http://"));
        let odd = |c: char| matches!(c, '@' | '?' | '#') || c.is_whitespace() || c.is_control();
        if !rest.is_some_and(|rest| !rest.trim_matches('/').is_empty() && !rest.contains(odd)) {
            return Err(format!(
                "line {line}: {key} is no URL: say \"https://s3.example.org\", without user and query"
            ));
        }
        Ok(Some(url.trim_end_matches('/').to_string()))
    }

    fn bucket(&mut self, key: &'static str) -> Result<String, String> {
        let (line, bucket) = self.needed(key, "\"my-backups\"")?;
        if !(3..=63).contains(&bucket.len()) || !bucket.chars().all(is_plain) {
            return Err(format!("line {line}: this is no name of a {key}: 3 to 63 letters, digits, -, _ and ."));
        }
        Ok(bucket)
    }

    fn prefix(&mut self) -> Result<String, String> {
        let Some((line, prefix)) = self.string("prefix")? else { return Ok(String::new()) };
        let prefix = prefix.trim_matches('/');
        let good = |part: &str| !matches!(part, "" | "." | "..") && part.chars().all(is_plain);
        if !prefix.is_empty() && !prefix.split('/').all(good) {
            return Err(format!(
                "line {line}: the prefix has odd characters: letters, digits, -, _, . and / are taken"
            ));
        }
        Ok(if prefix.is_empty() { String::new() } else { format!("{prefix}/") })
    }

    /// Where the secret is to be had: the keys that name a variable and a file, or a command.
    fn secret(&mut self, [variable_key, file_key]: [&'static str; 2]) -> Result<SecretFrom, String> {
        let variable = self.string(variable_key)?.map(|(_, name)| SecretFrom::Variable(name));
        let file = match self.string(file_key)? {
            Some(_) => Some(SecretFrom::File(self.absolute(file_key, "/etc/assay/secret")?)),
            None => None,
        };
        let command = self.string("credential-command")?.map(|(_, command)| SecretFrom::Command(command));
        let line = self.line;
        let mut given = [variable, file, command].into_iter().flatten();
        match (given.next(), given.next()) {
            (None, _) => Ok(SecretFrom::Usual),
            (Some(one), None) => Ok(one),
            (Some(_), Some(_)) => {
                Err(format!("line {line}: say only one of {variable_key}, {file_key} and credential-command"))
            }
        }
    }
}

/// In names of buckets and prefixes.
fn is_plain(c: char) -> bool {
    c.is_ascii_alphanumeric() || matches!(c, '-' | '.' | '_')
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

    #[test]
    fn services_are_named_by_their_own_words() {
        let text = "[[destination]]\nname = \"dav\"\ntype = \"webdav\"\nurl = \"https://h/dav/\"\nuser = \"me\"\n\
                    password-file = \"/etc/p\"\n\
                    [[destination]]\nname = \"blobs\"\ntype = \"azure\"\naccount = \"mine\"\ncontainer = \"backups\"\n\
                    prefix = \"a\"\nclass = \"Cold\"\n\
                    [[destination]]\nname = \"google\"\ntype = \"gcs\"\nbucket = \"backups\"\ncredential-command = \"c\"\n\
                    verify = \"read\"\n\
                    [[destination]]\nname = \"open\"\ntype = \"webdav\"\nurl = \"http://127.0.0.1:8080\"\n";
        let all = Settings::parse_all(text).unwrap();
        let places: Vec<_> = all.iter().map(|all| (all.type_name(), all.place_text(), all.verify)).collect();
        let place = |kind, place: &str, verify| (kind, place.to_string(), verify);
        assert_eq!(
            places,
            [
                place("webdav", "https://h/dav", Verify::Read),
                place("azure", "azure://mine/backups/a/", Verify::Server),
                place("gcs", "gs://backups/", Verify::Read),
                place("webdav", "http://127.0.0.1:8080", Verify::Read),
            ]
        );
        assert_eq!(
            all.iter().map(Settings::checksum).collect::<Vec<_>>(),
            [None, Some(Lie::Md5), Some(Lie::Md5), None]
        );
        let Place::WebDav(dav) = &all[0].place else { panic!("{all:?}") };
        assert_eq!((dav.user.as_deref(), &dav.password), (Some("me"), &SecretFrom::File("/etc/p".into())));
        let Place::Azure(azure) = &all[1].place else { panic!("{all:?}") };
        assert_eq!((&azure.secret, azure.class.as_deref()), (&SecretFrom::Usual, Some("Cold")));
        let Place::Gcs(gcs) = &all[2].place else { panic!("{all:?}") };
        assert_eq!((&gcs.secret, &gcs.endpoint), (&SecretFrom::Command("c".into()), &None));
    }

    /// Each line that is wrong, in a table that is right but for it: the line's number and a word of the remedy.
    #[test]
    fn what_is_wrong_is_one_line_with_its_place_and_remedy() {
        let dir = "name = \"usb\"\ntype = \"dir\"\npath = \"/p\"\n";
        let s3 = "name = \"c\"\ntype = \"s3\"\nbucket = \"bucket\"\n";
        let sftp = "name = \"s\"\ntype = \"sftp\"\nhost = \"h\"\npath = \"p\"\n";
        let webdav = "name = \"w\"\ntype = \"webdav\"\nurl = \"https://h\"\n";
        let azure = "name = \"a\"\ntype = \"azure\"\naccount = \"mine\"\ncontainer = \"backups\"\n";
        let gcs = "name = \"g\"\ntype = \"gcs\"\nbucket = \"bucket\"\n";
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
            (webdav, "user = \"me\"", "line 1:", "password-file"),
            (webdav, "password-env = \"P\"", "line 1:", "come together"),
            (webdav, "user = \"a:b\"\npassword-env = \"P\"", "line 5:", "without `:`"),
            (webdav, "password = \"hunter2\"", "line 5:", "password-file"),
            (webdav, "verify = \"server\"", "line 5:", "\"read\" or \"trust\""),
            (webdav, "bucket = \"b\"", "line 5:", "url, user, password-env"),
            (azure, "account-key = \"hunter2\"", "line 6:", "secret-key-file"),
            (azure, "sas-token = \"hunter2\"", "line 6:", "secret-key-env"),
            (azure, "endpoint = \"https://h/?sv=hunter2\"", "line 6:", "no URL"),
            (gcs, "credentials = \"hunter2\"", "line 5:", "credential-file"),
            (gcs, "credential-file = \"key.json\"", "line 5:", "absolute"),
            (gcs, "region = \"x\"", "line 5:", "type gcs has no setting `region`"),
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
            ("[[destination]]\nname = \"a\"\ntype = \"webdav\"", "add url ="),
            ("[[destination]]\nname = \"a\"\ntype = \"azure\"\naccount = \"A-1\"", "small letters"),
            (
                "[[destination]]\nname = \"a\"\ntype = \"azure\"\naccount = \"mine\"\ncontainer = \"c\"",
                "no name of a container",
            ),
            ("destination = [1]", "[[destination]]"),
        ] {
            assert!(Settings::parse_all(text).unwrap_err().contains(word), "{text}");
        }
    }
}
