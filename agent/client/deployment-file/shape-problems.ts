import type { z } from 'zod'
import type { Problem } from '../deployment-file-error.ts'
import { fieldsAt } from './format.ts'
import { nearestWord } from './nearest-word.ts'
import type { Path, Source } from './yaml-source.ts'

type Issue = z.core.$ZodIssue

/** What compose, Kubernetes and older manifests call things, and what to write here. */
const ELSEWHERE: Readonly<Record<string, string>> = {
  services: 'write containers',
  version: 'remove it',
  secrets: 'write them below volumes, as { secret: { file: … } }',
  replicas: 'write scaling, as { min: 1, max: 3 }',
  env: 'write environment',
  env_file: 'write the variables below environment',
  args: 'write command',
  arguments: 'write command',
  mounts: 'write volumes',
  volumeMounts: 'write volumes',
  workingDir: 'write working_dir',
  mem_limit: 'write memory',
  cpus: 'write cpu',
  resources: 'write cpu and memory',
  deploy: 'write cpu and memory, and scaling at the top',
  expose: 'write ports',
  build: 'build the image first, and write image: ./app.tar',
  depends_on: 'remove it: containers of a pod start together',
  restart: 'remove it: containers are started again whenever they end',
  mountPath: 'write path',
  readOnly: 'write read_only',
  target: 'write container',
  published: 'write service, host or tcp',
  containerPort: 'write container',
  servicePort: 'write service',
  hostHttpHost: 'write host',
  hostTcpPort: 'write tcp',
  password: 'passwords do not belong into this file; write password_file or password_env',
  size: 'write disk or scratch',
  '<<': 'merge keys are not known here; write the values out',
}

/** What zod found, as problems with their places. */
export function shapeProblems(source: Source, issues: readonly Issue[]): Problem[] {
  return issues.flatMap((issue) => problemsOf(source, issue, []))
}

function problemsOf(source: Source, issue: Issue, above: Path): Problem[] {
  const path = [...above, ...pathOf(issue)]
  if (issue.code === 'unrecognized_keys') {
    return issue.keys.map((key) => source.keyProblem([...path, key], unknownKey(key, path)))
  }
  if (issue.code === 'invalid_union') {
    // The way of writing it that was chosen is the one whose faults lie deeper; of the others the value as a whole is wrong.
    const chosen = issue.errors.find((branch) => branch.every(isDeeper))
    if (chosen !== undefined && chosen.length > 0) {
      return chosen.flatMap((inner) => problemsOf(source, inner, path))
    }
  }
  return [source.problem(path, issue.message)]
}

function isDeeper(issue: Issue): boolean {
  return (
    issue.path.length > 0 ||
    issue.code === 'unrecognized_keys' ||
    issue.code === 'invalid_format' ||
    issue.code === 'custom'
  )
}

function unknownKey(key: string, path: Path): string {
  const fields = fieldsAt(path)
  const elsewhere = Object.hasOwn(ELSEWHERE, key) ? ELSEWHERE[key] : undefined
  if (elsewhere !== undefined) return `there is no such field; ${elsewhere}`
  const near = nearestWord(key, fields)
  if (near !== undefined) return `there is no such field; did you mean ${near}?`
  return `there is no such field; there are ${fields.join(', ')}`
}

function pathOf(issue: Issue): Path {
  return issue.path.map((step) => (typeof step === 'symbol' ? String(step) : step))
}
