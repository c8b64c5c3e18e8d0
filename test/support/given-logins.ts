import type { FindLogins } from '../../agent/registries/find-logins.ts'
import { RegistryLogin } from '../../agent/registries/registry-login.ts'
import type { Login } from './oci-registry.ts'

/** Finds these logins for every registry, in this order. */
export function givenLogins(...logins: readonly (Login | RegistryLogin)[]): FindLogins {
  return {
    loginsFor: async () =>
      logins.map((login) =>
        login instanceof RegistryLogin
          ? login
          : RegistryLogin.password(`test ${login.username}`, login.username, login.password),
      ),
  }
}
