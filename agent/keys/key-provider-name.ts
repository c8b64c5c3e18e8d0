/**
 * What this agent is called as a key provider: `skopeo copy --encryption-key provider:ipdr:<key>`. It stands in the annotations
 * of what was encrypted so, `org.opencontainers.image.enc.keys.provider.ipdr`.
 */
export const KEY_PROVIDER_NAME = 'ipdr'
