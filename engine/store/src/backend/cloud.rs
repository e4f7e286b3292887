//! Stores that speak HTTP: made from environment variables, with limits on every wait, and errors that say which variable
//! to set.

use std::sync::Arc;
use std::time::Duration;

use futures::TryStreamExt as _;
use object_store::aws::{AmazonS3Builder, AmazonS3ConfigKey};
use object_store::azure::{AzureConfigKey, MicrosoftAzureBuilder};
use object_store::client::SpawnedReqwestConnector;
use object_store::gcp::{GoogleCloudStorageBuilder, GoogleConfigKey};
use object_store::path::Path;
use object_store::prefix::PrefixStore;
use object_store::{BackoffConfig, ClientConfigKey, Error, ObjectStore, RetryConfig};

use super::explain::{brief, element, status};
use super::location::Cloud;
use super::runtime;
use crate::{Result, StoreError};

/// How long a server may take to accept a connection.
const CONNECT: &str = "5 seconds";
/// How long a request may take, its content included.
const REQUEST: &str = "120 seconds";
/// How long the first request may take with all its attempts: an address that is wrong is named by then.
const FIRST_ANSWER: Duration = Duration::from_secs(15);

/// What a store is made from and how it is called in messages.
struct Opened {
    objects: Arc<dyn ObjectStore>,
    /// Address of the service, if it is not the usual one.
    endpoint: Option<String>,
    has_credentials: bool,
}

impl Cloud {
    fn service(self) -> &'static str {
        match self {
            Self::S3 => "Amazon S3",
            Self::Google => "Google Cloud Storage",
            Self::Azure => "Azure Blob Storage",
        }
    }

    fn endpoint_variable(self) -> &'static str {
        match self {
            Self::S3 => "AWS_ENDPOINT_URL",
            Self::Google => "GOOGLE_BASE_URL",
            Self::Azure => "AZURE_STORAGE_ENDPOINT",
        }
    }

    fn http_variable(self) -> &'static str {
        match self {
            Self::S3 => "AWS_ALLOW_HTTP",
            Self::Google => "GOOGLE_ALLOW_HTTP",
            Self::Azure => "AZURE_ALLOW_HTTP",
        }
    }

    /// Variables that hold the credentials.
    fn credential_variables(self) -> &'static str {
        match self {
            Self::S3 => {
                "AWS_ACCESS_KEY_ID and AWS_SECRET_ACCESS_KEY (and AWS_SESSION_TOKEN for temporary ones; profiles in ~/.aws \
                 are not read)"
            }
            Self::Google => "GOOGLE_APPLICATION_CREDENTIALS or GOOGLE_SERVICE_ACCOUNT_KEY",
            Self::Azure => {
                "AZURE_STORAGE_ACCOUNT_NAME and AZURE_STORAGE_ACCOUNT_KEY (or AZURE_STORAGE_SAS_KEY)"
            }
        }
    }
}

/// Opens a bucket and asks it for something, so that what is wrong with address or credentials is said at once.
pub(super) fn open(
    cloud: Cloud,
    url: &str,
    bucket_url: &str,
    bucket: &str,
    prefix: &str,
) -> Result<Arc<dyn ObjectStore>> {
    let bad = |message: String| StoreError::Url {
        url: url.to_owned(),
        message,
    };
    let opened = match cloud {
        Cloud::S3 => s3(bucket),
        Cloud::Google => google(bucket),
        Cloud::Azure => azure(bucket_url),
    }
    .map_err(bad)?;
    let objects: Arc<dyn ObjectStore> = if prefix.is_empty() {
        Arc::clone(&opened.objects)
    } else {
        let prefix = Path::parse(prefix).map_err(|error| bad(error.to_string()))?;
        Arc::new(PrefixStore::new(Arc::clone(&opened.objects), prefix))
    };
    // A list tells a bucket that is missing from one that is empty, which a look for one object does not.
    let nothing = Path::from("v1/open");
    let asked = runtime::block_on(true, async {
        let first = objects.list(Some(&nothing));
        tokio::time::timeout(FIRST_ANSWER, first.try_collect::<Vec<_>>()).await
    });
    let failed = match asked {
        Ok(Ok(_)) => return Ok(objects),
        Ok(Err(error)) => Some(error),
        Err(_) => None,
    };
    Err(bad(explain(cloud, bucket, &opened, failed.as_ref())))
}

/// Each request is tried a few times by the client, which can also go on in the middle of an answer.
fn retries() -> RetryConfig {
    RetryConfig {
        backoff: BackoffConfig {
            init_backoff: Duration::from_millis(100),
            max_backoff: Duration::from_secs(2),
            base: 2.0,
        },
        max_retries: 3,
        retry_timeout: Duration::from_mins(1),
    }
}

fn connector() -> SpawnedReqwestConnector {
    SpawnedReqwestConnector::new(runtime::handle().clone())
}

/// Waits that the environment does not set itself.
const WAITS: [(ClientConfigKey, &str); 2] = [
    (ClientConfigKey::ConnectTimeout, CONNECT),
    (ClientConfigKey::Timeout, REQUEST),
];

fn s3(bucket: &str) -> std::result::Result<Opened, String> {
    let mut builder = AmazonS3Builder::from_env().with_bucket_name(bucket);
    for (key, value) in WAITS {
        builder = builder.with_config(AmazonS3ConfigKey::Client(key), value);
    }
    let value = |key: AmazonS3ConfigKey| {
        builder
            .get_config_value(&key)
            .filter(|text| !text.is_empty())
    };
    let endpoint =
        value(AmazonS3ConfigKey::S3Endpoint).or_else(|| value(AmazonS3ConfigKey::Endpoint));
    let allows_http = value(AmazonS3ConfigKey::Client(ClientConfigKey::AllowHttp));
    check_endpoint(Cloud::S3, endpoint.as_deref(), allows_http.as_deref())?;
    let has_credentials = [
        AmazonS3ConfigKey::AccessKeyId,
        AmazonS3ConfigKey::WebIdentityTokenFile,
        AmazonS3ConfigKey::ContainerCredentialsRelativeUri,
        AmazonS3ConfigKey::ContainerCredentialsFullUri,
    ]
    .into_iter()
    .any(|key| value(key).is_some());
    let objects = builder
        .with_retry(retries())
        .with_http_connector(connector())
        .build()
        .map_err(|error| not_built(Cloud::S3, &error))?;
    Ok(Opened {
        objects: Arc::new(objects),
        endpoint,
        has_credentials,
    })
}

fn google(bucket: &str) -> std::result::Result<Opened, String> {
    let mut builder = GoogleCloudStorageBuilder::from_env().with_bucket_name(bucket);
    for (key, value) in WAITS {
        builder = builder.with_config(GoogleConfigKey::Client(key), value);
    }
    let value = |key: GoogleConfigKey| {
        builder
            .get_config_value(&key)
            .filter(|text| !text.is_empty())
    };
    let endpoint = value(GoogleConfigKey::BaseUrl);
    let allows_http = value(GoogleConfigKey::Client(ClientConfigKey::AllowHttp));
    check_endpoint(Cloud::Google, endpoint.as_deref(), allows_http.as_deref())?;
    let has_credentials = [
        GoogleConfigKey::ServiceAccount,
        GoogleConfigKey::ServiceAccountKey,
        GoogleConfigKey::ApplicationCredentials,
    ]
    .into_iter()
    .any(|key| value(key).is_some());
    let objects = builder
        .with_retry(retries())
        .with_http_connector(connector())
        .build()
        .map_err(|error| not_built(Cloud::Google, &error))?;
    Ok(Opened {
        objects: Arc::new(objects),
        endpoint,
        has_credentials,
    })
}

fn azure(bucket_url: &str) -> std::result::Result<Opened, String> {
    let mut builder = MicrosoftAzureBuilder::from_env().with_url(bucket_url);
    for (key, value) in WAITS {
        builder = builder.with_config(AzureConfigKey::Client(key), value);
    }
    let value = |key: AzureConfigKey| {
        builder
            .get_config_value(&key)
            .filter(|text| !text.is_empty())
    };
    let endpoint = value(AzureConfigKey::Endpoint);
    let allows_http = value(AzureConfigKey::Client(ClientConfigKey::AllowHttp));
    check_endpoint(Cloud::Azure, endpoint.as_deref(), allows_http.as_deref())?;
    let has_credentials = [
        AzureConfigKey::AccessKey,
        AzureConfigKey::SasKey,
        AzureConfigKey::Token,
        AzureConfigKey::ClientSecret,
        AzureConfigKey::FederatedTokenFile,
    ]
    .into_iter()
    .any(|key| value(key).is_some());
    let objects = builder
        .with_retry(retries())
        .with_http_connector(connector())
        .build()
        .map_err(|error| not_built(Cloud::Azure, &error))?;
    Ok(Opened {
        objects: Arc::new(objects),
        endpoint,
        has_credentials,
    })
}

fn not_built(cloud: Cloud, error: &Error) -> String {
    format!(
        "its settings are not complete: {}; set {}",
        brief(error),
        cloud.credential_variables()
    )
}

fn check_endpoint(
    cloud: Cloud,
    endpoint: Option<&str>,
    allows_http: Option<&str>,
) -> std::result::Result<(), String> {
    let Some(endpoint) = endpoint else {
        return Ok(());
    };
    let variable = cloud.endpoint_variable();
    let url = url::Url::parse(endpoint)
        .map_err(|error| format!("{variable} is no URL ({error}); write https://host:port"))?;
    if !url.username().is_empty() || url.password().is_some() {
        return Err(format!(
            "{variable} holds credentials; give them in {}",
            cloud.credential_variables()
        ));
    }
    if url.scheme() == "http" && allows_http != Some("true") {
        return Err(format!(
            "{variable} is {endpoint}, which is not encrypted; set {}=true to allow that",
            cloud.http_variable()
        ));
    }
    Ok(())
}

/// What is wrong and what to do. `error` is absent when there was no answer in time.
fn explain(cloud: Cloud, bucket: &str, opened: &Opened, error: Option<&Error>) -> String {
    let credentials = cloud.credential_variables();
    let place = opened
        .endpoint
        .as_deref()
        .unwrap_or_else(|| cloud.service());
    let endpoint = cloud.endpoint_variable();
    if !opened.has_credentials {
        return format!(
            "there are no credentials for {}; set {credentials}",
            cloud.service()
        );
    }
    let Some(error) = error else {
        return format!(
            "{place} did not answer within {} seconds; check {endpoint} and the network",
            FIRST_ANSWER.as_secs()
        );
    };
    let (text, cause) = (error.to_string(), brief(error));
    match (status(&text), element(&text, "Code")) {
        (_, Some("InvalidAccessKeyId")) => {
            format!("{place} does not know the access key ({cause}); check AWS_ACCESS_KEY_ID")
        }
        (_, Some("SignatureDoesNotMatch")) => {
            format!("{place} refused the signature ({cause}); check AWS_SECRET_ACCESS_KEY")
        }
        (_, Some("ExpiredToken" | "InvalidToken")) => {
            format!("{place} refused the session's token ({cause}); renew AWS_SESSION_TOKEN")
        }
        (_, Some("AuthorizationHeaderMalformed" | "PermanentRedirect")) => {
            format!("bucket `{bucket}` is in another region ({cause}); set AWS_REGION")
        }
        (Some(401 | 403), _) => format!(
            "{place} refused the credentials for bucket `{bucket}` ({cause}); they must allow to list, read, write and \
             remove objects; check {credentials}"
        ),
        (Some(404), _) => format!(
            "there is no bucket `{bucket}` at {place} ({cause}); make it, or correct the address or {endpoint}"
        ),
        (Some(_), _) => format!("{place} does not work: {cause}"),
        (None, _) if matches!(error, Error::NotFound { .. }) => {
            format!("there is no bucket `{bucket}` at {place}; make it, or correct the address")
        }
        (None, _) if text.contains("redirect") => {
            format!("bucket `{bucket}` is in another region; set AWS_REGION")
        }
        (None, _) => {
            format!("{place} cannot be reached: {cause}; check {endpoint} and the network")
        }
    }
}

#[cfg(test)]
#[path = "cloud_tests.rs"]
mod tests;
