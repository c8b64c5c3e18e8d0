import {
  KubernetesObjectApi,
  type V1ClusterRole,
  type V1PolicyRule,
  type V1Role,
  type V1RoleBinding,
} from '@kubernetes/client-node'
import type { KubeAccount, KubeApiServer } from './kube-apiserver.ts'
import { objectsIn } from './kubernetes-manifests.ts'

const given = objectsIn('components/deploy-endpoint/access.yaml')

/** What it may do in all namespaces. */
export const deployRules: readonly V1PolicyRule[] = given
  .filter((object): object is V1ClusterRole => object.kind === 'ClusterRole')
  .flatMap(({ rules }) => rules ?? [])

/** A service account with the rights that node-image/kubernetes gives the deploy endpoint, and no more. */
export async function deployAccount(server: KubeApiServer): Promise<KubeAccount> {
  const roles = given.filter((object): object is V1Role => object.kind === 'Role')
  const bindings = given.filter((object): object is V1RoleBinding => object.kind === 'RoleBinding')
  const account = await server.account('deploy', [])
  await account.allow(deployRules)
  const api = KubernetesObjectApi.makeApiClient(server.admin)
  const subjects = [{ kind: 'ServiceAccount', name: 'deploy', namespace: 'ipdr-system' }]
  for (const role of roles) await api.create(role)
  for (const binding of bindings) await api.create(Object.assign(binding, { subjects }))
  return account
}
