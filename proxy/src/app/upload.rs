//! Recordings brought to a store, as the agent's options say it.

use secrecy::SecretString;

use crate::{
    cli::{Addressing, AgentOptions, UploadOptions},
    metrics::Metrics,
    recording::{
        recorder::Recordings,
        upload::{
            Login, Options, UploadError, Uploads,
            destination::{Destination, Kind},
        },
    },
};

/// Where nothing says so.
const REGION: &str = "us-east-1";

/// Begins to bring them, if the options say so.
///
/// # Errors
/// If the options can't be used.
pub(super) async fn uploads(
    options: &AgentOptions,
    recordings: &Recordings,
    metrics: &Metrics,
) -> Result<Option<Uploads>, UploadError> {
    let (Some(directory), Some(destination)) = (&options.recordings, &options.upload.recording_upload) else {
        return Ok(None);
    };
    let terms = terms(&options.upload, destination, |variable| std::env::var(variable).ok())?;
    let (node, ended) = (&options.node_name, recordings.ended());
    Uploads::start(directory, node, terms, ended, metrics).await.map(Some)
}

fn terms(
    options: &UploadOptions,
    destination: &Destination,
    variable: impl Fn(&str) -> Option<String>,
) -> Result<Options, UploadError> {
    // One that is empty is as good as none.
    let variable = |name: &str| variable(name).filter(|value| !value.is_empty());
    let region = options.recording_upload_region.clone();
    let region = region
        .or_else(|| variable("AWS_REGION"))
        .or_else(|| variable("AWS_DEFAULT_REGION"));
    let path_style = match (options.recording_upload_addressing, &destination.kind) {
        (Some(addressing), _) => addressing == Addressing::Path,
        (None, Kind::S3 { bucket }) => {
            // A certificate for *.s3.amazonaws.com names no bucket with a dot in it.
            options.recording_upload_endpoint.is_some() || bucket.contains('.')
        }
        (None, Kind::Http(_)) => true,
    };
    Ok(Options {
        destination: destination.clone(),
        remove: options.recording_upload_remove,
        ca: options.recording_upload_ca.clone(),
        login: login(options, destination, variable)?,
        endpoint: options.recording_upload_endpoint.clone(),
        region: region.unwrap_or_else(|| REGION.to_owned()),
        path_style,
        allow_plaintext: options.recording_upload_allow_plaintext,
    })
}

fn login(
    options: &UploadOptions,
    destination: &Destination,
    variable: impl Fn(&str) -> Option<String>,
) -> Result<Login, UploadError> {
    if options.recording_upload_anonymous {
        return Ok(Login::Anonymous);
    }
    if let Some(file) = &options.recording_upload_credentials {
        return Ok(Login::File(file.clone()));
    }
    if let Kind::Http(_) = destination.kind {
        return Err(UploadError::NoLogin);
    }
    if let (Some(id), Some(secret)) = (variable("AWS_ACCESS_KEY_ID"), variable("AWS_SECRET_ACCESS_KEY")) {
        return Ok(Login::Key {
            id,
            secret: secret.into(),
            session: variable("AWS_SESSION_TOKEN").map(SecretString::from),
        });
    }
    match (variable("AWS_WEB_IDENTITY_TOKEN_FILE"), variable("AWS_ROLE_ARN")) {
        (Some(token_file), Some(role)) => Ok(Login::WebIdentity {
            token_file,
            role,
            session_name: variable("AWS_ROLE_SESSION_NAME"),
        }),
        _ => Err(UploadError::NoLogin),
    }
}

#[cfg(test)]
mod tests {
    use clap::Parser;
    use rstest::rstest;

    use super::*;
    use crate::cli::{Cli, Command};

    fn asked(more: &[&str], variables: &[(&str, &str)]) -> Result<Options, String> {
        let agent = [
            "understudy",
            "agent",
            "--sessions=/s",
            "--node-name=n",
            "--recordings=/r",
        ];
        let parsed = Cli::try_parse_from(agent.iter().chain(more)).map_err(|error| error.to_string())?;
        let Command::Agent(options) = parsed.command else {
            panic!("not an agent");
        };
        let destination = options.upload.recording_upload.clone().unwrap();
        let variable = |name: &str| {
            let found = variables.iter().find(|(found, _)| *found == name);
            found.map(|(_, value)| (*value).to_owned())
        };
        terms(&options.upload, &destination, variable).map_err(|error| error.to_string())
    }

    const KEY: [(&str, &str); 2] = [("AWS_ACCESS_KEY_ID", "AK"), ("AWS_SECRET_ACCESS_KEY", "hidden")];
    const IRSA: [(&str, &str); 2] = [
        ("AWS_WEB_IDENTITY_TOKEN_FILE", "/token"),
        ("AWS_ROLE_ARN", "arn:aws:iam::1:role/r"),
    ];

    #[rstest]
    #[case::key(&[], &KEY, "Key")]
    #[case::for_a_role(&[], &IRSA, "WebIdentity")]
    #[case::file(&["--recording-upload-credentials=/c"], &KEY, "File")]
    #[case::nobody(&["--recording-upload-anonymous"], &KEY, "Anonymous")]
    fn logins(#[case] more: &[&str], #[case] variables: &[(&str, &str)], #[case] login: &str) {
        let more: Vec<_> = ["--recording-upload=s3://audit"].iter().chain(more).copied().collect();
        let options = asked(&more, variables).unwrap();
        let said = format!("{:?}", options.login);
        assert!(said.starts_with(login) && !said.contains("hidden"), "{said}");
    }

    #[rstest]
    #[case::amazon("s3://audit", &[], &[], (false, "us-east-1"))]
    #[case::dots("s3://audit.example", &[], &[], (true, "us-east-1"))]
    #[case::elsewhere("s3://audit", &["--recording-upload-endpoint=https://minio:9000"], &[], (true, "us-east-1"))]
    #[case::hosts("s3://audit", &["--recording-upload-endpoint=https://minio:9000", "--recording-upload-addressing=virtual-host"], &[], (false, "us-east-1"))]
    #[case::region("s3://audit", &["--recording-upload-region=eu-west-1"], &[("AWS_REGION", "eu-north-1")], (false, "eu-west-1"))]
    #[case::variable("s3://audit", &[], &[("AWS_REGION", ""), ("AWS_DEFAULT_REGION", "eu-north-1")], (false, "eu-north-1"))]
    fn places(
        #[case] url: &str,
        #[case] more: &[&str],
        #[case] variables: &[(&str, &str)],
        #[case] expected: (bool, &str),
    ) {
        let url = format!("--recording-upload={url}");
        let more: Vec<_> = [&url[..], "--recording-upload-anonymous"]
            .iter()
            .chain(more)
            .copied()
            .collect();
        let options = asked(&more, variables).unwrap();
        assert_eq!((options.path_style, options.region.as_str()), expected);
    }

    #[rstest]
    #[case::nobody(&["--recording-upload=s3://audit"], &[], "there are no credentials")]
    #[case::half(&["--recording-upload=s3://audit"], &KEY[..1], "there are no credentials")]
    #[case::not_for_s3(&["--recording-upload=https://dav/a"], &KEY, "there are no credentials")]
    #[case::both(&["--recording-upload=s3://audit", "--recording-upload-anonymous", "--recording-upload-credentials=/c"], &[], "cannot be used with")]
    #[case::nothing_to_bring(&["--recording-upload-remove"], &[], "--recording-upload <URL>")]
    #[case::no_place(&["--recording-upload=/var/lib"], &[], "write s3://")]
    fn what_is_wrong_is_told(#[case] more: &[&str], #[case] variables: &[(&str, &str)], #[case] says: &str) {
        let error = asked(more, variables).unwrap_err();
        assert!(error.contains(says), "{error}");
    }
}
