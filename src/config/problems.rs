//! What is wrong with the settings: one sentence for each variable, all of them at once.

use std::borrow::Cow;
use std::fmt;

use super::{Config, Switch};

/// A setting with which the service cannot start, as one sentence that names its variable.
#[derive(Debug, thiserror::Error)]
#[error("{variable} {why}")]
pub struct ConfigError {
    variable: Cow<'static, str>,
    why: String,
}

impl ConfigError {
    /// `why` continues the sentence after the variable's name: "is missing: …".
    #[must_use]
    pub fn new(variable: impl Into<Cow<'static, str>>, why: impl Into<String>) -> Self {
        Self { variable: variable.into(), why: why.into() }
    }

    /// The name of the variable.
    #[must_use]
    pub fn variable(&self) -> &str {
        &self.variable
    }

    /// The sentence after the variable's name.
    #[must_use]
    pub fn why(&self) -> &str {
        &self.why
    }
}

/// All settings with which the service cannot start, in the order in which they were found.
#[derive(Debug, Default)]
pub struct ConfigErrors(Vec<ConfigError>);

impl ConfigErrors {
    /// Adds a problem, unless its variable already has one. A variable with a problem counts as
    /// unset, so a second problem would only be a result of the first.
    pub fn add(&mut self, problem: ConfigError) {
        if self.of(problem.variable()).is_none() {
            self.0.push(problem);
        }
    }

    /// The value of a result. Adds its problems if it is an error.
    pub fn take<T>(&mut self, result: Result<T, impl Into<Self>>) -> Option<T> {
        match result {
            Ok(value) => Some(value),
            Err(problems) => {
                let problems: Self = problems.into();
                problems.0.into_iter().for_each(|problem| self.add(problem));
                None
            }
        }
    }

    /// `value` if there is no problem.
    ///
    /// # Errors
    ///
    /// The problems, if there is any or `value` is `None`.
    pub fn or<T>(self, value: Option<T>) -> Result<T, Self> {
        match value {
            Some(value) if self.is_empty() => Ok(value),
            _ => Err(self),
        }
    }

    /// Whether there is no problem.
    #[must_use]
    pub const fn is_empty(&self) -> bool {
        self.0.is_empty()
    }

    /// The problem of a variable.
    #[must_use]
    pub fn of(&self, variable: &str) -> Option<&ConfigError> {
        self.iter().find(|problem| problem.variable() == variable)
    }

    /// The problems.
    pub fn iter(&self) -> impl Iterator<Item = &ConfigError> {
        self.0.iter()
    }
}

impl From<ConfigError> for ConfigErrors {
    fn from(problem: ConfigError) -> Self {
        Self(vec![problem])
    }
}

impl fmt::Display for ConfigErrors {
    fn fmt(&self, f: &mut fmt::Formatter<'_>) -> fmt::Result {
        let sentences: Vec<_> = self.iter().map(ToString::to_string).collect();
        f.write_str(&sentences.join("; "))
    }
}

impl std::error::Error for ConfigErrors {}

impl Config {
    /// Adds a problem for each setting that `serve` requires and that is missing, and for
    /// `DEV_NO_LIMITS` if it is set: only `dev` accepts it.
    pub fn require(&self, problems: &mut ConfigErrors) {
        if std::env::var_os("DEV_NO_LIMITS").is_some_and(|value| !value.is_empty()) {
            problems.add(ConfigError::new("DEV_NO_LIMITS", "is only for `vos-auth dev`: unset it"));
        }
        if self.clients.public_origin.is_none() {
            let why =
                "is missing: set it to the origin that browsers see, such as https://platform.verolabs.co";
            problems.add(ConfigError::new("PUBLIC_ORIGIN", why));
        }
        if self.page.recovery_page == Switch::On && self.page.sign_in_url.is_none() {
            let why = "is missing: set it to your sign-in page, such as https://oms.verolabs.co/login, or RECOVERY_PAGE=off";
            problems.add(ConfigError::new("SIGN_IN_URL", why));
        }
        if self.jwt.jwt_keys.is_none() {
            let why = "is missing: set it to the folder of the keys that sign JWTs; `vos-auth key generate` creates a key";
            problems.add(ConfigError::new("JWT_KEYS", why));
        }
    }
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn a_variable_has_one_problem_and_a_value_counts_only_without_problems() {
        let mut problems = ConfigErrors::default();
        assert_eq!(problems.take(Ok::<_, ConfigError>(1)), Some(1));
        assert!(problems.is_empty() && ConfigErrors::default().or(Some(1)).is_ok());
        assert!(ConfigErrors::default().or(None::<u8>).is_err());
        assert_eq!(problems.take::<u8>(Err(ConfigError::new("A", "cannot be 1"))), None);
        problems.add(ConfigError::new("A", "is missing"));
        problems.add(ConfigError::new("B", "is missing"));
        assert_eq!(problems.to_string(), "A cannot be 1; B is missing");
        assert!(problems.or(Some(1)).is_err());
    }
}
