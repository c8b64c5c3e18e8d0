import { createHmac, randomBytes } from 'node:crypto'

/** Makes fingerprints of this process worthless to anybody who sees one. */
const fingerprintKey = randomBytes(32)

/** What a registry is shown to be let in. Its secrets are in no property: neither a log nor an error nor JSON can show them. */
export class RegistryLogin {
  /** Where it was found and who gave it, in words that may be logged: `docker config /root/.docker/config.json`. */
  readonly origin: string
  /** The same for the same secrets, to tell logins apart in memory. */
  readonly fingerprint: string
  readonly #basic: { readonly username: string; readonly password: string } | undefined
  readonly #identityToken: string | undefined
  readonly #registryToken: string | undefined

  private constructor(
    origin: string,
    secrets: {
      readonly basic?: { readonly username: string; readonly password: string }
      readonly identityToken?: string
      readonly registryToken?: string
    },
  ) {
    this.origin = origin
    this.#basic = secrets.basic
    this.#identityToken = secrets.identityToken
    this.#registryToken = secrets.registryToken
    this.fingerprint = createHmac('sha256', fingerprintKey)
      .update(JSON.stringify(secrets))
      .digest('base64url')
  }

  /** A user name and password, or a token in its place. */
  static password(origin: string, username: string, password: string): RegistryLogin {
    return new RegistryLogin(origin, { basic: { username, password } })
  }

  /** An OAuth2 refresh token, which the registry's token server exchanges for one that it takes (distribution-spec, token/oauth). */
  static identityToken(origin: string, token: string): RegistryLogin {
    return new RegistryLogin(origin, { identityToken: token })
  }

  /** A bearer token that the registry takes as it is. */
  static registryToken(origin: string, token: string): RegistryLogin {
    return new RegistryLogin(origin, { registryToken: token })
  }

  /** The value of Authorization for the scheme Basic; undefined if it has no password. */
  basicAuthorization(): string | undefined {
    if (this.#basic === undefined) return undefined
    const { username, password } = this.#basic
    return `Basic ${Buffer.from(`${username}:${password}`).toString('base64')}`
  }

  refreshToken(): string | undefined {
    return this.#identityToken
  }

  bearerToken(): string | undefined {
    return this.#registryToken
  }

  toJSON(): string {
    return this.origin
  }
}
