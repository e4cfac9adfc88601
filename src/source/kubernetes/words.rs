//! Owns how errors of the client are told in a line of the log: the server's own words, or all causes in a row.

use std::error::Error;
use std::fmt;

/// Shows an error with its causes; of a refusal by the API server its message and code alone.
pub(super) struct Words<'a>(pub(super) &'a (dyn Error + 'static));

impl fmt::Display for Words<'_> {
    fn fmt(&self, f: &mut fmt::Formatter<'_>) -> fmt::Result {
        let mut next = Some(self.0);
        let mut said = String::new();
        while let Some(error) = next {
            let refusal = match error.downcast_ref() {
                Some(kube::Error::Api(status)) => Some(format!("{} ({})", status.message, status.code)),
                _ => None,
            };
            next = error.source().filter(|_| refusal.is_none());
            let words = refusal.unwrap_or_else(|| error.to_string());
            // Many wrappers repeat what they wrap.
            if !said.contains(&words) {
                let gap = if said.is_empty() { "" } else { ": " };
                write!(f, "{gap}{words}")?;
                said.push_str(&words);
            }
        }
        Ok(())
    }
}

#[cfg(test)]
mod tests {
    use super::*;

    #[derive(Debug, thiserror::Error)]
    #[error("the call failed")]
    struct Call(#[source] kube::Error);

    #[test]
    fn a_refusal_is_told_in_the_servers_words_and_no_more() {
        let status = kube::core::Status::failure("pods is forbidden", "Forbidden").with_code(403);
        let error = Call(kube::Error::Api(Box::new(status)));
        assert_eq!(Words(&error).to_string(), "the call failed: pods is forbidden (403)");
    }

    #[test]
    fn all_causes_are_told_once() {
        let refused = std::io::Error::from(std::io::ErrorKind::ConnectionRefused);
        let error = Call(kube::Error::Service(Box::new(refused)));
        assert_eq!(Words(&error).to_string(), "the call failed: ServiceError: connection refused");
    }
}
