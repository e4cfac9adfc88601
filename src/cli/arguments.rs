//! Owns which argument is the value of a flag where people and clap disagree: `-1s` behind a flag is its value, so that
//! it is judged in words beside all others, and a flag in the place of a value is none.

use std::ffi::OsString;

use clap::Command;

use crate::settings::MISSING;

/// The arguments with values that begin with a hyphen tied to their flags. For `run`, which judges its flags itself,
/// flags without their value get one that says so.
pub(super) fn tied(root: &Command, mut arguments: impl Iterator<Item = OsString>) -> Vec<OsString> {
    let mut tied: Vec<OsString> = arguments.by_ref().take(2).collect();
    let Some(command) = tied.get(1).and_then(|name| root.find_subcommand(name)) else {
        tied.extend(arguments);
        return tied;
    };
    let judges_itself = command.get_name() == "run";
    let mut arguments = arguments.peekable();
    while let Some(argument) = arguments.next() {
        if argument == "--" {
            tied.push(argument);
            break;
        }
        if !wants_value(command, &argument) {
            tied.push(argument);
            continue;
        }
        let value = arguments.next_if(|next| !is_flag(next));
        match value {
            Some(value) if value.as_encoded_bytes().starts_with(b"-") => tied.push(tie(argument, &value)),
            Some(value) => tied.extend([argument, value]),
            None if judges_itself => tied.push(tie(argument, &MISSING.into())),
            None => tied.push(argument),
        }
    }
    tied.extend(arguments);
    tied
}

/// Whether the value of this flag is the next argument.
fn wants_value(command: &Command, argument: &OsString) -> bool {
    let name = argument.to_str().and_then(|it| it.strip_prefix("--"));
    let mut flags = command.get_arguments().filter(|it| it.get_action().takes_values());
    name.is_some_and(|name| flags.any(|it| it.get_long() == Some(name)))
}

/// There are no short flags but those for help and the version, and a lone hyphen is a value.
fn is_flag(argument: &OsString) -> bool {
    argument.as_encoded_bytes().starts_with(b"--") || argument == "-h" || argument == "-V"
}

fn tie(mut flag: OsString, value: &OsString) -> OsString {
    flag.push("=");
    flag.push(value);
    flag
}

#[cfg(test)]
mod tests {
    use clap::CommandFactory;

    use super::super::Cli;
    use super::*;

    fn check(arguments: &str, expected: &str) {
        let root = Cli::command();
        let tied = tied(&root, format!("guideway {arguments}").split(' ').map(OsString::from));
        let tied: Vec<&str> = tied.iter().skip(1).map(|it| it.to_str().unwrap()).collect();
        assert_eq!(tied.join(" ").replace(MISSING, "?"), expected);
    }

    #[test]
    fn values_that_begin_with_a_hyphen_belong_to_their_flag() {
        check("run --drain-timeout -1s --workers 0", "run --drain-timeout=-1s --workers 0");
        check("run --access-log - --file=-x", "run --access-log=- --file=-x");
        check("plan p.yaml --max-surge -1 --standalone -x", "plan p.yaml --max-surge=-1 --standalone -x");
        check("demo --load -1 --rate -1", "demo --load -1 --rate=-1");
    }

    #[test]
    fn a_flag_is_no_value_and_run_is_told_that_there_is_none() {
        check("run --drain-timeout --workers 2", "run --drain-timeout=? --workers 2");
        check("run --workers --file", "run --workers=? --file=?");
        check("run --workers -h", "run --workers=? -h");
        check("demo --port --load", "demo --port --load");
    }

    #[test]
    fn everything_else_stays_as_it_is() {
        check("run --workers -- --file -x", "run --workers=? -- --file -x");
        check("run -- --file -x", "run -- --file -x");
        check("check --standalone -", "check --standalone -");
        check("run --unknown -1", "run --unknown -1");
        check("--version", "--version");
        check("nothing --file -x", "nothing --file -x");
    }
}
