//! Owns the verdicts: what was asked, what was found, and the table that is printed of it.

/// One line of the report.
pub(crate) struct Gate {
    name: String,
    goal: String,
    figure: String,
    verdict: Verdict,
}

#[derive(Clone, Copy, PartialEq, Eq)]
enum Verdict {
    Pass,
    Fail,
    /// Says something, promises nothing.
    Note,
}

impl Gate {
    /// A figure that must hold.
    pub(crate) fn new(
        name: impl Into<String>,
        goal: impl Into<String>,
        figure: impl Into<String>,
        pass: bool,
    ) -> Self {
        let verdict = if pass { Verdict::Pass } else { Verdict::Fail };
        Self { name: name.into(), goal: goal.into(), figure: figure.into(), verdict }
    }

    /// A figure without a goal.
    pub(crate) fn note(name: impl Into<String>, figure: impl Into<String>) -> Self {
        Self { name: name.into(), goal: String::new(), figure: figure.into(), verdict: Verdict::Note }
    }
}

/// Prints all lines; true when none failed.
pub(crate) fn report(gates: &[Gate]) -> bool {
    let width =
        |field: fn(&Gate) -> &str| gates.iter().map(|gate| field(gate).chars().count()).max().unwrap_or(0);
    let (name, goal) = (width(|gate| &gate.name), width(|gate| &gate.goal));
    let figure = width(|gate| &gate.figure);
    println!("| {:name$} | {:goal$} | {:figure$} |      |", "gate", "goal", "figure");
    println!("|-{:-<name$}-|-{:-<goal$}-|-{:-<figure$}-|------|", "", "", "");
    for gate in gates {
        let verdict = match gate.verdict {
            Verdict::Pass => "pass",
            Verdict::Fail => "FAIL",
            Verdict::Note => "    ",
        };
        println!("| {:name$} | {:goal$} | {:figure$} | {verdict} |", gate.name, gate.goal, gate.figure);
    }
    gates.iter().all(|gate| gate.verdict != Verdict::Fail)
}
