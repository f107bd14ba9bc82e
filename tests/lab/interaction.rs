//! A polkit agent on a terminal asks for a password.

use crate::harness::*;

/// The exit status of vcpuctl for a caller that is not authorized.
const REFUSED: Option<i32> = Some(3);

#[tokio::test]
async fn a_user_with_the_password_of_an_administrator_is_authorized() {
    let host = Host::enter().await;
    let guest = Guest::paused("web").await;
    let machine = host.machine("web").await;

    let password = User::PASSWORD_OF_ADAM;
    let answer = User::ALICE
        .authenticate("vcpuctl set web 2", password)
        .await;
    assert_eq!(answer.status, Some(0), "{}", answer.screen);
    let question = "Authentication is required to change the virtual CPUs of web from 1 to 2.";
    assert!(answer.screen.contains(question), "{}", answer.screen);
    assert!(answer.screen.contains("web: added 1"), "{}", answer.screen);
    assert_eq!(machine.vcpus().await, Ok(2));
    assert_eq!(guest.vcpu_threads(), [0, 1]);
}

#[tokio::test]
async fn a_user_without_the_password_is_refused() {
    let host = Host::enter().await;
    let guest = Guest::paused("web").await;
    let machine = host.machine("web").await;

    let answer = User::ALICE.authenticate("vcpuctl set web 2", "guess").await;
    assert_eq!(answer.status, REFUSED, "{}", answer.screen);
    assert!(answer.screen.contains("FAILED"), "{}", answer.screen);
    assert_eq!(machine.vcpus().await, Ok(1));
    assert_eq!(guest.vcpu_threads(), [0]);
}
