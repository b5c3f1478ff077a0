//! Whether the host's own firewall drops what machines send, read from its rules as text.
//!
//! Pure: rules in, the rule that drops out. A heuristic that errs towards silence: rules that depend
//! on addresses, marks or other chains are not followed.
//!
//! Not here: how the rules are got (`gather`), firewalls between here and the machines.

use crate::port_owner::Transport;

/// The rule or policy of `nft -nn list ruleset` that drops a port's packets.
pub(super) fn dropped_by_nft(ruleset: &str, transport: Transport, port: u16) -> Option<String> {
    let mut chain = Chain::default();
    let mut found = None;
    for line in ruleset.lines().map(str::trim) {
        let words: Vec<&str> = line.split_ascii_whitespace().collect();
        match words.as_slice() {
            ["chain", ..] => chain = Chain::default(),
            ["type", "filter", "hook", "input", ..] => {
                chain.input = true;
                chain.drops = line.contains("policy drop");
            }
            ["}"] => {
                if chain.input && chain.drops && !chain.decided {
                    found.get_or_insert_with(|| "the input chain's policy is drop".to_owned());
                }
                chain = Chain::default();
            }
            rule if chain.input && !chain.decided => match nft_verdict(rule, transport, port) {
                Some(true) => {
                    chain.decided = true;
                    found.get_or_insert_with(|| line.to_owned());
                }
                Some(false) => chain.decided = true,
                None => {}
            },
            _ => {}
        }
    }
    found
}

#[derive(Default)]
struct Chain {
    input: bool,
    drops: bool,
    /// A rule has spoken.
    decided: bool,
}

/// Whether a rule drops the port's packets; `None` when it is about others.
fn nft_verdict(rule: &[&str], transport: Transport, port: u16) -> Option<bool> {
    let drops = match rule {
        rule if rule.contains(&"drop") || rule.contains(&"reject") => true,
        // Another chain may accept: that is as good as accepted here.
        rule if rule.contains(&"accept") || rule.contains(&"jump") => false,
        _ => return None,
    };
    if rule.contains(&"\"lo\"") || rule.contains(&"ct") || rule.contains(&"saddr") {
        return None;
    }
    match rule.iter().position(|word| *word == "dport") {
        Some(at) => {
            let own = rule[..at].contains(&transport.word())
                || rule[..at].contains(&"th")
                || rule[..at].contains(&"meta");
            (own && has_port(&rule[at + 1..], port)).then_some(drops)
        }
        None => {
            let other = ["tcp", "udp", "icmp", "icmpv6", "ip6", "igmp"];
            let foreign = rule
                .iter()
                .any(|word| other.contains(word) && *word != transport.word());
            (!foreign).then_some(drops)
        }
    }
}

/// `67`, `67-69`, or `{ 67, 69 }`.
fn has_port(words: &[&str], port: u16) -> bool {
    let until = match words.first() {
        Some(&"{") => words.iter().position(|word| *word == "}"),
        _ => Some(1),
    };
    let named = words.get(..until.unwrap_or(0)).unwrap_or_default();
    named
        .iter()
        .any(|word| in_range(word.trim_matches(','), '-', port))
}

fn in_range(text: &str, between: char, port: u16) -> bool {
    let (first, last) = text.split_once(between).unwrap_or((text, text));
    match (first.parse::<u16>(), last.parse::<u16>()) {
        (Ok(first), Ok(last)) => (first..=last).contains(&port),
        _ => false,
    }
}

/// The same of `iptables-save`.
pub(super) fn dropped_by_iptables(saved: &str, transport: Transport, port: u16) -> Option<String> {
    let mut policy = None;
    for line in saved.lines().map(str::trim) {
        let words: Vec<&str> = line.split_ascii_whitespace().collect();
        if words.first() == Some(&":INPUT") && words.get(1) == Some(&"DROP") {
            policy = Some("the policy of INPUT is DROP".to_owned());
        }
        if words.get(..2) != Some(&["-A", "INPUT"]) {
            continue;
        }
        let value = |option: &str| {
            let at = words.iter().position(|word| *word == option)?;
            words.get(at + 1).copied()
        };
        let other_packets = value("-i") == Some("lo")
            || value("-s").is_some()
            || line.contains("state")
            || value("-p").is_some_and(|own| own != transport.word());
        let ports = value("--dport").or_else(|| value("--dports"));
        let other_ports =
            ports.is_some_and(|ports| !ports.split(',').any(|part| in_range(part, ':', port)));
        if other_packets || other_ports {
            continue;
        }
        match value("-j") {
            Some("DROP" | "REJECT") => return Some(line.to_owned()),
            Some("LOG") | None => {}
            Some(_) => return None,
        }
    }
    policy
}

#[cfg(test)]
mod tests {
    use super::*;
    use Transport::{Tcp, Udp};

    const STRICT: &str = "table inet filter {
        chain input {
            type filter hook input priority filter; policy drop;
            ct state established,related accept
            iif \"lo\" accept
            icmp type echo-request accept
            tcp dport { 22, 8080 } accept
            udp dport 67-68 accept
        }
    }";

    #[test]
    fn a_dropping_policy_drops_what_no_rule_accepts() {
        assert_eq!(dropped_by_nft(STRICT, Udp, 67), None);
        assert_eq!(dropped_by_nft(STRICT, Tcp, 8080), None);
        for (transport, port) in [(Udp, 69), (Udp, 4011), (Tcp, 80), (Udp, 8080)] {
            assert!(dropped_by_nft(STRICT, transport, port).is_some(), "{port}");
        }
    }

    #[test]
    fn a_rule_that_drops_a_port_is_named_and_the_first_rule_wins() {
        let rules = "table ip filter {
            chain INPUT {
                type filter hook input priority 0; policy accept;
                udp dport 69 counter packets 0 bytes 0 drop
                udp dport { 67, 4011 } accept
                udp dport 4011 drop
            }
            chain FORWARD {
                type filter hook forward priority 0; policy drop;
                udp dport 67 drop
            }
        }";
        let found = dropped_by_nft(rules, Udp, 69).expect("a rule");
        assert!(found.starts_with("udp dport 69"), "{found}");
        assert_eq!(dropped_by_nft(rules, Udp, 4011), None);
        assert_eq!(dropped_by_nft(rules, Udp, 67), None);
        assert_eq!(dropped_by_nft("", Udp, 67), None);
    }

    #[test]
    fn iptables_rules_are_read_in_order() {
        let saved = "*filter\n:INPUT DROP [0:0]\n-A INPUT -i lo -j ACCEPT\n\
                     -A INPUT -m state --state RELATED,ESTABLISHED -j ACCEPT\n\
                     -A INPUT -p udp -m udp --dport 67:68 -j ACCEPT\n\
                     -A INPUT -p tcp -m multiport --dports 22,8080 -j ACCEPT\nCOMMIT\n";
        assert_eq!(dropped_by_iptables(saved, Udp, 67), None);
        assert_eq!(dropped_by_iptables(saved, Tcp, 8080), None);
        assert!(dropped_by_iptables(saved, Udp, 69).is_some());
        let drop = ":INPUT ACCEPT [0:0]\n-A INPUT -p udp --dport 69 -j DROP\n";
        assert!(dropped_by_iptables(drop, Udp, 69).is_some());
        assert_eq!(dropped_by_iptables(drop, Udp, 67), None);
    }
}
