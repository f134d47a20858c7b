//! Credentials from the files of Amazon's own tools: `~/.aws/credentials` and `~/.aws/config`, by profile.
//! What the environment says comes first.

use std::path::PathBuf;

use ini::Ini;
use object_store::aws::{AmazonS3Builder, AmazonS3ConfigKey};

/// What a profile may set, and the variable that says the same.
const SETTINGS: [(&str, &str, AmazonS3ConfigKey); 5] = [
    ("aws_access_key_id", "AWS_ACCESS_KEY_ID", AmazonS3ConfigKey::AccessKeyId),
    ("aws_secret_access_key", "AWS_SECRET_ACCESS_KEY", AmazonS3ConfigKey::SecretAccessKey),
    ("aws_session_token", "AWS_SESSION_TOKEN", AmazonS3ConfigKey::Token),
    ("region", "AWS_REGION", AmazonS3ConfigKey::Region),
    ("endpoint_url", "AWS_ENDPOINT_URL", AmazonS3ConfigKey::Endpoint),
];

/// Puts a profile's settings under those of the environment.
pub(super) fn apply(
    mut builder: AmazonS3Builder,
    variable: impl Fn(&str) -> Option<String>,
) -> AmazonS3Builder {
    let home = || variable("HOME").map(PathBuf::from);
    let file = |name: &str, usual: &str| {
        let path = variable(name).map(PathBuf::from).or_else(|| Some(home()?.join(usual)))?;
        Ini::load_from_file(path).ok()
    };
    let credentials = file("AWS_SHARED_CREDENTIALS_FILE", ".aws/credentials");
    let config = file("AWS_CONFIG_FILE", ".aws/config");
    let profile = variable("AWS_PROFILE").unwrap_or_else(|| "default".into());
    let in_config =
        if profile == "default" { profile.clone() } else { format!("profile {profile}") };
    // Half a pair of keys from here and half from there would never fit.
    let keys_given = variable("AWS_ACCESS_KEY_ID").is_some();
    for (key, name, setting) in SETTINGS {
        if variable(name).is_some() || (keys_given && key.starts_with("aws_")) {
            continue;
        }
        let of = |file: &Option<Ini>, section: &str| {
            Some(file.as_ref()?.section(Some(section))?.get(key)?.to_owned())
        };
        if let Some(value) = of(&credentials, &profile).or_else(|| of(&config, &in_config)) {
            builder = builder.with_config(setting, value);
        }
    }
    builder
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn a_profile_fills_what_the_environment_leaves_open() {
        let home = tempfile::TempDir::new().unwrap();
        std::fs::create_dir(home.path().join(".aws")).unwrap();
        std::fs::write(
            home.path().join(".aws/credentials"),
            "[default]\naws_access_key_id = A\naws_secret_access_key = B\n[night]\naws_access_key_id = C\naws_secret_access_key = D\n",
        )
        .unwrap();
        std::fs::write(
            home.path().join(".aws/config"),
            "[default]\nregion = eu-west-1\n[profile night]\nregion = eu-north-1\n",
        )
        .unwrap();
        let found = |set: &[(&str, &str)]| {
            let variable = |name: &str| {
                let set = set.iter().find(|(known, _)| *known == name);
                let home = || (name == "HOME").then(|| home.path().display().to_string());
                set.map(|(_, value)| (*value).to_owned()).or_else(home)
            };
            let builder = apply(AmazonS3Builder::new(), variable);
            [
                AmazonS3ConfigKey::AccessKeyId,
                AmazonS3ConfigKey::SecretAccessKey,
                AmazonS3ConfigKey::Region,
            ]
            .map(|key| builder.get_config_value(&key).unwrap_or_default())
        };
        assert_eq!(found(&[]), ["A", "B", "eu-west-1"]);
        assert_eq!(found(&[("AWS_PROFILE", "night")]), ["C", "D", "eu-north-1"]);
        let keys = [("AWS_ACCESS_KEY_ID", "X"), ("AWS_SECRET_ACCESS_KEY", "Y")];
        assert_eq!(found(&keys), ["", "", "eu-west-1"], "the environment's keys are left alone");
        assert_eq!(found(&[("AWS_PROFILE", "nobody")]), ["", "", ""]);
    }
}
