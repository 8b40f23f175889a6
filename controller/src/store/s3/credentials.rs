//! Who we are to an object store: the usual chain of sources, first found first used.
//!
//! 1. `AWS_ACCESS_KEY_ID`, `AWS_SECRET_ACCESS_KEY`, `AWS_SESSION_TOKEN`
//! 2. web identity, as a Kubernetes service account has it: `AWS_WEB_IDENTITY_TOKEN_FILE`,
//!    `AWS_ROLE_ARN`, exchanged at STS (`AWS_ENDPOINT_URL_STS`)
//! 3. the shared file `AWS_SHARED_CREDENTIALS_FILE`, default `~/.aws/credentials`, profile `AWS_PROFILE`
//! 4. the container's endpoint, as pod identity has it: `AWS_CONTAINER_CREDENTIALS_FULL_URI` or
//!    `_RELATIVE_URI`, with `AWS_CONTAINER_AUTHORIZATION_TOKEN` or `_FILE`
//! 5. the instance's metadata service, version 2, unless `AWS_EC2_METADATA_DISABLED=true`
//!
//! A source that is set up and fails is an error; the next one would be somebody else. Nothing here
//! is ever logged or part of an error but which source it was and in what way it failed.

use std::env;
use std::fmt;
use std::time::Duration;

use bytes::Bytes;
use http::Method;
use http_body_util::{BodyExt as _, Limited};
use percent_encoding::{NON_ALPHANUMERIC, utf8_percent_encode};
use serde::Deserialize;
use time::OffsetDateTime;
use time::format_description::well_known::Rfc3339;
use tokio::sync::Mutex;
use zeroize::Zeroizing;

use super::error::S3Error;
use super::http::{Chunks, Connection};

/// Sources answer at once or never.
const PATIENCE: Duration = Duration::from_secs(5);
/// Longest answer or file.
const LIMIT: usize = 1 << 20;
/// How long before its end a credential is replaced, and how often a file is read again.
const MARGIN: Duration = Duration::from_secs(300);

/// A key of an account.
#[derive(Clone)]
pub(super) struct Credential {
    pub(super) id: String,
    pub(super) secret: Zeroizing<String>,
    pub(super) token: Option<Zeroizing<String>>,
    /// When it is to be replaced; never, if none is given.
    until: Option<OffsetDateTime>,
}

impl Credential {
    pub(super) fn of(id: &str, secret: &str, token: Option<String>) -> Self {
        Self {
            id: id.to_owned(),
            secret: Zeroizing::new(secret.to_owned()),
            token: token.map(Zeroizing::new),
            until: None,
        }
    }
}

impl fmt::Debug for Credential {
    fn fmt(&self, f: &mut fmt::Formatter<'_>) -> fmt::Result {
        f.write_str("Credential")
    }
}

/// The chain, and what it gave last.
pub(super) struct Credentials {
    connection: Connection,
    region: String,
    last: Mutex<Option<Credential>>,
}

/// What sources that speak JSON answer.
#[derive(Deserialize)]
#[serde(rename_all = "PascalCase")]
struct Answer {
    access_key_id: String,
    secret_access_key: String,
    #[serde(alias = "SessionToken")]
    token: Option<String>,
    expiration: Option<String>,
}

#[derive(Deserialize)]
struct Assumed {
    #[serde(rename = "AssumeRoleWithWebIdentityResult")]
    result: AssumedResult,
}

#[derive(Deserialize)]
struct AssumedResult {
    #[serde(rename = "Credentials")]
    credentials: Answer,
}

impl Credentials {
    pub(super) fn new(connection: Connection, region: &str) -> Self {
        Self {
            connection,
            region: region.to_owned(),
            last: Mutex::default(),
        }
    }

    /// One that can be used for a while.
    pub(super) async fn current(&self) -> Result<Credential, S3Error> {
        let mut last = self.last.lock().await;
        if let Some(known) = &*last
            && known
                .until
                .is_none_or(|until| OffsetDateTime::now_utc() < until)
        {
            return Ok(known.clone());
        }
        let found = self.find().await?;
        *last = Some(found.clone());
        Ok(found)
    }

    async fn find(&self) -> Result<Credential, S3Error> {
        if let (Some(id), Some(secret)) = (set("AWS_ACCESS_KEY_ID"), set("AWS_SECRET_ACCESS_KEY")) {
            return Ok(Credential::of(&id, &secret, set("AWS_SESSION_TOKEN")));
        }
        if let (Some(file), Some(role)) = (set("AWS_WEB_IDENTITY_TOKEN_FILE"), set("AWS_ROLE_ARN"))
        {
            return named("web identity", self.web_identity(&file, &role).await);
        }
        if let Some(found) = shared_file().await? {
            return Ok(found);
        }
        if let Some(found) = self.container().await? {
            return Ok(found);
        }
        if set("AWS_EC2_METADATA_DISABLED").is_some_and(|set| set.eq_ignore_ascii_case("true")) {
            return Err(failed(
                "none of the others is set up, and the instance's is turned off",
            ));
        }
        named("instance metadata", self.instance().await)
    }

    async fn web_identity(&self, file: &str, role: &str) -> Result<Credential, &'static str> {
        let token = tokio::fs::read_to_string(file).await;
        let token = Zeroizing::new(token.map_err(|_| "the token's file can't be read")?);
        let endpoint = set("AWS_ENDPOINT_URL_STS")
            .unwrap_or_else(|| format!("https://sts.{}.amazonaws.com", self.region));
        let session = set("AWS_ROLE_SESSION_NAME").unwrap_or_else(|| "impound-controller".into());
        let form = [
            ("Action", "AssumeRoleWithWebIdentity"),
            ("Version", "2011-06-15"),
            ("RoleArn", role),
            ("RoleSessionName", &session),
            ("WebIdentityToken", token.trim()),
        ];
        let form: Vec<String> = form
            .iter()
            .map(|(name, value)| format!("{name}={}", utf8_percent_encode(value, NON_ALPHANUMERIC)))
            .collect();
        let headers = [("content-type", "application/x-www-form-urlencoded")];
        let uri = format!("{}/", endpoint.trim_end_matches('/'));
        let answer = self
            .ask(Method::POST, &uri, &headers, form.join("&"))
            .await?;
        let text = std::str::from_utf8(&answer).map_err(|_| "an answer that is no text")?;
        let assumed: Assumed =
            quick_xml::de::from_str(text).map_err(|_| "an answer without credentials")?;
        assumed.result.credentials.credential()
    }

    async fn container(&self) -> Result<Option<Credential>, S3Error> {
        let uri = match set("AWS_CONTAINER_CREDENTIALS_RELATIVE_URI") {
            Some(path) => format!("http://169.254.170.2{path}"),
            None => match set("AWS_CONTAINER_CREDENTIALS_FULL_URI") {
                Some(uri) => uri,
                None => return Ok(None),
            },
        };
        let asked = async {
            let mut token = set("AWS_CONTAINER_AUTHORIZATION_TOKEN");
            if let Some(file) = set("AWS_CONTAINER_AUTHORIZATION_TOKEN_FILE") {
                let read = tokio::fs::read_to_string(file).await;
                token = Some(read.map_err(|_| "the token's file can't be read")?);
            }
            let token = token.map(|token| token.trim().to_owned());
            let headers: Vec<_> = token
                .iter()
                .map(|token| ("authorization", &**token))
                .collect();
            let answer = self.ask(Method::GET, &uri, &headers, String::new()).await?;
            parse(&answer)
        };
        named("container", asked.await).map(Some)
    }

    async fn instance(&self) -> Result<Credential, &'static str> {
        const ROLES: &str = "/latest/meta-data/iam/security-credentials/";
        let base = set("AWS_EC2_METADATA_SERVICE_ENDPOINT")
            .unwrap_or_else(|| "http://169.254.169.254".into());
        let base = base.trim_end_matches('/');
        let text = |bytes: Bytes| String::from_utf8(bytes.into()).map_err(|_| "no text");
        let lifetime = [("x-aws-ec2-metadata-token-ttl-seconds", "21600")];
        let uri = format!("{base}/latest/api/token");
        let token = text(
            self.ask(Method::PUT, &uri, &lifetime, String::new())
                .await?,
        )?;
        let token = [("x-aws-ec2-metadata-token", token.trim())];
        let uri = format!("{base}{ROLES}");
        let roles = text(self.ask(Method::GET, &uri, &token, String::new()).await?)?;
        let role = roles.lines().next().ok_or("the instance has no role")?;
        let uri = format!("{base}{ROLES}{}", role.trim());
        parse(&self.ask(Method::GET, &uri, &token, String::new()).await?)
    }

    async fn ask(
        &self,
        method: Method,
        uri: &str,
        headers: &[(&str, &str)],
        body: String,
    ) -> Result<Bytes, &'static str> {
        let mut request = http::Request::builder().method(method).uri(uri);
        for (name, value) in headers {
            request = request.header(*name, *value);
        }
        let request = request
            .body(Chunks::new(vec![body.into()]))
            .map_err(|_| "a request that can't be made")?;
        let answered = async {
            let answer = self
                .connection
                .request(request)
                .await
                .map_err(|_| "no answer")?;
            if !answer.status().is_success() {
                return Err("a refusal");
            }
            let body = Limited::new(answer.into_body(), LIMIT).collect().await;
            Ok(body.map_err(|_| "a cut or endless answer")?.to_bytes())
        };
        tokio::time::timeout(PATIENCE, answered)
            .await
            .map_err(|_| "no answer in time")?
    }
}

impl Answer {
    fn credential(self) -> Result<Credential, &'static str> {
        let expires = self.expiration.map(|date| {
            let date = OffsetDateTime::parse(&date, &Rfc3339);
            date.map_err(|_| "an end that is no time")
        });
        let mut credential =
            Credential::of(&self.access_key_id, &self.secret_access_key, self.token);
        credential.until = expires.transpose()?.map(|expires| expires - MARGIN);
        Ok(credential)
    }
}

/// The shared file is read again now and then: it may be a mounted secret that rotates.
async fn shared_file() -> Result<Option<Credential>, S3Error> {
    let path = match set("AWS_SHARED_CREDENTIALS_FILE") {
        Some(path) => path,
        None => match set("HOME") {
            Some(home) => format!("{home}/.aws/credentials"),
            None => return Ok(None),
        },
    };
    let text = match tokio::fs::read_to_string(&path).await {
        Ok(text) => Zeroizing::new(text),
        Err(error) if error.kind() == std::io::ErrorKind::NotFound => return Ok(None),
        Err(error) => return Err(failed(&format!("the file {path}: {error}"))),
    };
    let profile = set("AWS_PROFILE").unwrap_or_else(|| "default".into());
    let found = profile_of(&text, &profile);
    if found.is_none() && set("AWS_PROFILE").is_some() {
        return Err(failed(&format!(
            "the file {path} has no keys in profile {profile}"
        )));
    }
    Ok(found.map(|mut credential| {
        credential.until = Some(OffsetDateTime::now_utc() + MARGIN);
        credential
    }))
}

/// The keys of a section of an INI file.
fn profile_of(text: &str, profile: &str) -> Option<Credential> {
    let section = format!("[{profile}]");
    let lines = text.lines().map(str::trim);
    let inside = lines.skip_while(|line| *line != section).skip(1);
    let (mut id, mut secret, mut token) = (None, None, None);
    for line in inside.take_while(|line| !line.starts_with('[')) {
        match line
            .split_once('=')
            .map(|(name, value)| (name.trim(), value.trim()))
        {
            Some(("aws_access_key_id", value)) => id = Some(value),
            Some(("aws_secret_access_key", value)) => secret = Some(value),
            Some(("aws_session_token", value)) => token = Some(value.to_owned()),
            _ => {}
        }
    }
    Some(Credential::of(id?, secret?, token))
}

fn parse(answer: &[u8]) -> Result<Credential, &'static str> {
    let answer: Answer =
        serde_json::from_slice(answer).map_err(|_| "an answer without credentials")?;
    answer.credential()
}

fn set(variable: &str) -> Option<String> {
    env::var(variable).ok().filter(|value| !value.is_empty())
}

fn named(source: &str, found: Result<Credential, &'static str>) -> Result<Credential, S3Error> {
    found.map_err(|why| failed(&format!("{source}: {why}")))
}

fn failed(why: &str) -> S3Error {
    S3Error::Credential(why.to_owned())
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn a_profile_is_read_from_its_section_alone() {
        let text = "[default]\naws_access_key_id = A\naws_secret_access_key=s=1\n\n[other]\naws_access_key_id=B\n";
        let found = profile_of(text, "default").unwrap();
        assert_eq!((found.id.as_str(), found.secret.as_str()), ("A", "s=1"));
        assert!(profile_of(text, "other").is_none() && profile_of(text, "none").is_none());
    }

    #[test]
    fn a_temporary_credential_is_replaced_before_its_end() {
        let json = br#"{"AccessKeyId":"A","SecretAccessKey":"s","Token":"t","Expiration":"2026-01-01T12:00:00Z"}"#;
        let found = parse(json).unwrap();
        assert_eq!(
            found.until.unwrap(),
            time::macros::datetime!(2026-01-01 11:55:00 UTC)
        );
        assert_eq!(found.token.as_ref().unwrap().as_str(), "t");
        let xml = "<R><AssumeRoleWithWebIdentityResult><Credentials><AccessKeyId>A</AccessKeyId><SecretAccessKey>s</SecretAccessKey><SessionToken>t</SessionToken><Expiration>2026-01-01T12:00:00Z</Expiration></Credentials></AssumeRoleWithWebIdentityResult></R>";
        let assumed: Assumed = quick_xml::de::from_str(xml).unwrap();
        assert_eq!(assumed.result.credentials.credential().unwrap().id, "A");
    }

    #[test]
    fn a_secret_is_in_no_debug_output() {
        let credential = Credential::of("id", "very-secret", Some("token".into()));
        assert_eq!(format!("{credential:?}"), "Credential");
    }

    #[test]
    fn fuzz_credentials_any_answer_and_any_file_has_both_halves_or_none() {
        let seeds = [
            br#"{"AccessKeyId":"A","SecretAccessKey":"s","Token":"t","Expiration":"2026-01-01T12:00:00Z"}"#.to_vec(),
            b"[default]\naws_access_key_id = A\naws_secret_access_key=s=1\naws_session_token=t\n[other]\n".to_vec(),
            b"<R><AssumeRoleWithWebIdentityResult><Credentials><AccessKeyId>A</AccessKeyId><SecretAccessKey>s</SecretAccessKey><SessionToken>t</SessionToken><Expiration>2026-01-01T12:00:00Z</Expiration></Credentials></AssumeRoleWithWebIdentityResult></R>".to_vec(),
        ];
        impound_fuzz::run("credentials", &seeds, |_, bytes| {
            let _ = parse(&bytes);
            let text = String::from_utf8_lossy(&bytes);
            if profile_of(&text, "default").is_some() {
                assert!(
                    text.contains("aws_access_key_id") && text.contains("aws_secret_access_key")
                );
            }
            if let Ok(assumed) = quick_xml::de::from_str::<Assumed>(&text) {
                let _ = assumed.result.credentials.credential();
            }
        });
    }
}
