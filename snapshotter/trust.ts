// Who signed an image, and which images a node lets run.
export type { FoundSignature } from './trust/image-signatures.ts'
export { parseSigningKey, parseVerificationKey } from './trust/signing-key.ts'
export { type Signer, TrustPolicies, type TrustPolicy } from './trust/trust-policies.ts'
