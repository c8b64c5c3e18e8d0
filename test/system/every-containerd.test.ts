import { testPods } from '../every-containerd/pods.ts'

testPods(['1.6', '1.7', '2'])
