import { execFileSync } from 'node:child_process'
import { join } from 'node:path'

// Makes types/ of the .proto files, by the same options as load.ts reads them with: `npm run proto`. Another directory
// may be given, to compare.
const root = join(import.meta.dirname, '..')
const outDir = process.argv[2] ?? 'proto/types'

execFileSync(
  join(root, 'node_modules/.bin/proto-loader-gen-types'),
  [
    '--grpcLib=@grpc/grpc-js',
    '--importFileExtension=.ts',
    '--longs=String',
    '--enums=String',
    '--defaults',
    '--oneofs',
    '--includeDirs=proto',
    `--outDir=${outDir}`,
    'containerd/snapshots.proto',
    'containerd/content.proto',
    'containerd/images.proto',
    'containerd/tasks.proto',
    'containerd/introspection.proto',
    'containerd/diff.proto',
    'containerd/events.proto',
    'containerd/namespaces.proto',
    'cri.proto',
    'ipdr/agent.proto',
    'keyprovider/keyprovider.proto',
  ],
  // The directory stands in the files' first lines.
  { cwd: root, stdio: 'inherit' },
)
