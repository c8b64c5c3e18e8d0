import { testUserNamespaces } from '../every-containerd/user-namespaces.ts'

testUserNamespaces(['1.7', '2'])
